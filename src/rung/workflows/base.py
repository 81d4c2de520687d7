"""The models that a recipe names, to go on from or to learn from: read, check, fingerprint them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rung.data.tokenizer_loading import load_tokenizer
from rung.errors import RecipeError, RunError
from rung.models import load, make_config
from rung.models.base import CausalModel
from rung.models.loading import (
    check_has_weights,
    load_rung,
    locate_model,
    read_config,
)
from rung.models.weight_checks import check_weights
from rung.recipe import Recipe
from rung.training.dataset import DEFAULT_BLOCK_LENGTH
from rung.training.distillation import list_runs, load_teachers

# What may be set anew: it says how the weights are trained, not what they are. The length is also
# the reach of learned positions, and there it may not.
FREE = ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")
LENGTH = "max_position_embeddings"


def load_base(recipe: Recipe) -> CausalModel:
    """Load the model of `recipe.base` in float32, with the settings that may be changed.

    Raises `RunError` when it cannot be read or is of another rung, `RecipeError` for a field of
    `recipe.model` that contradicts it.
    """
    where = _check_path(recipe)
    model, tokenizer = load_rung(where, "a base")
    _check_rung(recipe, model.config)
    if changes := _find_changes(recipe, model.config, tokenizer):
        with _explain_length(where, changes):
            model = load(where, settings=changes)[0]
    return model.float()


def read_base_config(recipe: Recipe) -> PreTrainedConfig:
    """Read the configuration of the model that `load_base` gives.

    Of a folder only the weights' shapes are read. Raises as `load_base` does.
    """
    where, is_local = locate_model(_check_path(recipe))
    config = read_config(where, is_local)
    _check_rung(recipe, config)
    if Path(where).is_dir():
        check_has_weights(Path(where))
    changes = _find_changes(recipe, config, load_tokenizer(where))
    for key, value in changes.items():
        setattr(config, key, value)
    if Path(where).is_dir():
        with _explain_length(where, changes):
            check_weights(recipe.entry.model_class, config, Path(where))
    return config


def _check_path(recipe: Recipe) -> str:
    where = str(recipe.base)
    if Path(where).is_file():
        raise RecipeError(
            f"base is {where}, a file: name a run or a model folder; `rung export FILE OUT --to "
            f"hf` makes one of an ARPA file"
        )
    return where


def _check_rung(recipe: Recipe, config: PreTrainedConfig) -> None:
    if config.model_type != recipe.entry.config_class.model_type:
        raise RunError(f"base: {recipe.base} is a {config.model_type!r} model and no {recipe.rung}")


def _find_changes(
    recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return the fields of `recipe.model` that differ from the base's."""
    changes: dict[str, Any] = {}
    for key, value in recipe.model.items():
        there = getattr(config, key, None)
        if there == value:
            continue
        if key not in (*FREE, LENGTH):
            raise RecipeError(
                f"model.{key} is {value!r}, but {recipe.base} was made with {there!r}: leave it out"
            )
        changes[key] = value
    if changes:
        make_config(recipe.rung, tokenizer, changes)  # refuses a value that is none
    return changes


@contextmanager
def _explain_length(where: str, changes: dict[str, Any]) -> Iterator[None]:
    """Explain why weights no longer fit: learned positions cannot become more or fewer."""
    try:
        yield
    except RunError as error:
        if LENGTH not in changes:
            raise
        raise RecipeError(
            f"model.{LENGTH} is {changes[LENGTH]!r}, but {where} has learned a vector for each of "
            f"its positions: "
            "leave it out"
        ) from error


def describe_base(path: str | None, model: CausalModel) -> dict[str, Any]:
    """Describe the base for the record: its path, and a fingerprint of its weights."""
    return {"base": {"path": path, "fingerprint": fingerprint_weights(model)}}


def describe_teachers(
    recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Check the runs that teach a model of `config`, and describe them for the record.

    Raises as `load_teachers` does.
    """
    names = list_runs(recipe.teacher)
    length = getattr(config, "max_position_embeddings", None) or DEFAULT_BLOCK_LENGTH
    models = load_teachers(names, tokenizer, config.vocab_size, length)
    digests = [fingerprint_weights(model) for model in models]
    return {"teachers": {"path": recipe.teacher, "fingerprint": " ".join(digests)}} if names else {}


def fingerprint_weights(model: CausalModel) -> str:
    """Return a digest that changes when a weight does."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
