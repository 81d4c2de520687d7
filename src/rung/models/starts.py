"""Starts: what a rung knows before its first step, by name."""

from typing import Any

import numpy

from rung.errors import RecipeError, did_you_mean
from rung.models.registry import find_rung
from rung.models.relays import add_bigram, add_induction, add_unigram
from rung.models.transformer_start import (
    TRANSFORMER_TYPES,
    find_missing,
    start_transformer,
)

RANDOM = "random"


def check_start(rung: str, start: str | None) -> None:
    """Raise `RecipeError` for a start that the rung does not have."""
    known = (*find_rung(rung).starts, RANDOM)
    if start is not None and start not in known:
        near = did_you_mean(str(start), known, f"{rung} has {', '.join(known)}")
        raise RecipeError(f"start is {start!r}: {near}")


def start_model(
    model: Any, rung: str, start: str | None, tokens: numpy.ndarray, starts: numpy.ndarray
) -> None:
    """Give a new model its start, from the training text where that is needed.

    `tokens` (N,) hold documents that begin at `starts`. Where `start` is None it is the rung's
    first, or as much of it as the model has room for. Raises `RecipeError` where a start that was
    asked for needs another model.
    """
    chosen = start or next(iter(find_rung(rung).starts), RANDOM)
    if missing := _find_missing(model, chosen):
        if start is not None:
            raise RecipeError(f"start is {start!r}, which needs {missing}")
        chosen = RANDOM if _find_missing(model, "unigram") else "unigram"
    if chosen != RANDOM and model.config.model_type in TRANSFORMER_TYPES:
        start_transformer(model, tokens)
    elif chosen == "bigram":
        add_bigram(model, tokens, starts)
    elif chosen != RANDOM:
        add_unigram(model, tokens)
        if chosen == "induction":
            add_induction(model)


def _find_missing(model: Any, start: str) -> str:
    """Say what the model would have to have for this start; empty where it has all."""
    if start == RANDOM:
        return ""
    if model.config.model_type in TRANSFORMER_TYPES:
        return find_missing(model)
    if model.get_output_embeddings().bias is None:
        return "a bias of the head: set head_bias=true"
    if start == "unigram":
        return ""
    config = model.config
    if config.cell != "lstm" or config.num_hidden_layers != 1:
        return "one layer of cell=lstm"
    if config.tie_word_embeddings:
        return "a head of its own: set tie_word_embeddings=false"
    if start == "induction" and (config.plain_attention or config.hidden_size < 4):
        return "projections: set plain_attention=false"
    return ""
