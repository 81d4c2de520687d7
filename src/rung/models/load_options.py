"""The options that a model is loaded with: its window, its weights' type, trust in its code."""

from dataclasses import dataclass
from typing import Any

import torch

from rung.errors import RecipeError, RunError, did_you_mean
from rung.models.base import CausalModel
from rung.models.foreign import ForeignForCausalLM
from rung.models.registry import Rung

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is loaded.

    `window` is the number of tokens to read at once in the place of the model's own, `dtype` the
    type of its weights in the place of the stored one. Code that comes with a model runs only with
    `trust_remote_code`. Raises `RecipeError` for a type that no weights are read in.
    """

    window: int | None = None
    dtype: str = ""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in DTYPES:
            raise RecipeError(f"--dtype is {self.dtype!r}: {did_you_mean(self.dtype, DTYPES)}")


AS_STORED = LoadOptions()


def set_window(model: CausalModel, where: str, window: int) -> None:
    """Have the model read `window` tokens at once.

    Raises `RunError` where it has no window, or fewer positions.
    """
    is_foreign, most = isinstance(model, ForeignForCausalLM), model.max_context_length
    if model.context_length is None and not is_foreign:
        raise RunError(f"{where} carries its state on and has no window: leave --window out")
    if not 2 <= window <= (most or window):
        limit = f"from 2 to {most:,}, the positions that it has" if most else "2 or more"
        raise RunError(f"--window is {window:,}: {where} reads {limit}")
    model.window = window


def parse_dtype(where: str, rung: Rung | None, options: LoadOptions) -> dict[str, Any]:
    """Return the keyword for the type of the weights; nothing where they stay as stored."""
    if not options.dtype:
        return {}
    if rung and rung.counts:
        raise RunError(f"{where} counts, so it has no weights to convert: leave --dtype out")
    return {"dtype": getattr(torch, options.dtype)}
