"""Memory for time: what a layer computed on the way up is computed again on the way back (Chen et
al. 2016).
"""

from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from rung.errors import RecipeError
from rung.ladder import LADDER
from rung.models import RUNGS
from rung.models.base import CausalModel

OLD, NEW = (
    "gradient_checkpointing",
    "activation_checkpointing",
)  # transformers renamed it, the field did not


def check_activations(name: str, model: type[CausalModel], arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a model that has no layers whose activations could be dropped."""
    for key in (OLD, NEW):
        if arguments.get(key) and not model.supports_gradient_checkpointing:
            able = ", ".join(
                name for name in LADDER if RUNGS[name].model_class.supports_gradient_checkpointing
            )
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: {name} cannot train so, its memory is in the "
                f"steps through time "
                f"and not in layers; of the rungs, {able} can"
            )


def rename_activations(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with the name that the transformers at hand prefers, which says so at every
    run.
    """
    known = {f.name for f in fields(TrainingArguments)}
    names = {key: key.replace(OLD, NEW) for key in (OLD, f"{OLD}_kwargs") if NEW in known}
    return {names.get(key, key): value for key, value in arguments.items()}
