"""The model that a recipe goes on from: read, held to be what the recipe says, and known again by its weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from rung.errors import RecipeError, RunError
from rung.models import CausalModel, find_rung, load, make_config
from rung.recipe import Recipe

# What may be set anew: it says how the weights are trained, not what they are. The length is also the reach of learned
# positions, and there it may not.
FREE = ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop")
LENGTH = "max_position_embeddings"


def load_base(recipe: Recipe) -> CausalModel:
    """The model of `recipe.base`, in float32, with the fields of `recipe.model` that may be set anew.

    Raises `RunError` when it cannot be read or is of another rung, `RecipeError` for a field that contradicts it.
    """
    where, rung = str(recipe.base), find_rung(recipe.rung)
    if Path(where).is_file():
        raise RecipeError(
            f"base is {where}, a file: name a run or a model folder; to read n-grams from an ARPA file the rung must "
            "be ngram, as in `rung train ngram --from`"
        )
    model, tokenizer = load(where)
    if not isinstance(model, rung.model):
        raise RunError(f"base: {where} is a {model.config.model_type!r} model and no {recipe.rung}")
    changes: dict[str, Any] = {}
    for key, value in recipe.model.items():
        there = getattr(model.config, key, None)
        if there == value:
            continue
        if key not in (*FREE, LENGTH):
            raise RecipeError(f"model.{key} is {value!r}, but {where} was made with {there!r}: leave it out")
        changes[key] = value
    if changes:
        make_config(recipe.rung, tokenizer, changes)  # refuses a value that is none
        model = _load_changed(where, changes)
    return model.float()


def describe_base(path: str | None, model: CausalModel) -> dict[str, Any]:
    """What a run records of its base: where it was, and what it was."""
    return {"base": {"path": path, "fingerprint": fingerprint_weights(model)}}


def fingerprint_weights(model: CausalModel) -> str:
    """A name that changes when a weight does."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _load_changed(where: str, changes: dict[str, Any]) -> CausalModel:
    try:
        return load(where, changes)[0]
    except RunError as error:
        raise RecipeError(
            f"model.{LENGTH} is {changes.get(LENGTH)!r}, but {where} has learned a vector for each of its positions: "
            "leave it out"
        ) from error
