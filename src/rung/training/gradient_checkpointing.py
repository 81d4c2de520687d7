"""Gradient checkpointing: a layer's activations are computed again for the backward pass.

It takes time and saves memory (Chen et al. 2016).
"""

from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from rung.errors import RecipeError
from rung.ladder import LADDER
from rung.models import RUNGS
from rung.models.base import CausalModel

# The field says the first, newer versions of transformers the second.
OLD_NAME, NEW_NAME = "gradient_checkpointing", "activation_checkpointing"


def check_gradient_checkpointing(
    name: str, model: type[CausalModel], arguments: dict[str, Any]
) -> None:
    """Raise `RecipeError` for a model without layers whose activations could be dropped."""
    for key in (OLD_NAME, NEW_NAME):
        if arguments.get(key) and not model.supports_gradient_checkpointing:
            able = ", ".join(
                name for name in LADDER if RUNGS[name].model_class.supports_gradient_checkpointing
            )
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: {name} cannot train so, its memory is in the "
                f"steps through time and not in layers; of the rungs, {able} can"
            )


def rename_gradient_checkpointing(arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments the name that the installed transformers prefers.

    It warns of the other one at every run.
    """
    known = {f.name for f in fields(TrainingArguments)}
    names = {
        key: key.replace(OLD_NAME, NEW_NAME)
        for key in (OLD_NAME, f"{OLD_NAME}_kwargs")
        if NEW_NAME in known
    }
    return {names.get(key, key): value for key, value in arguments.items()}
