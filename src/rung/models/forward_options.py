"""The options of Hugging Face that every rung's `forward` takes, and the form of its answer."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from rung.errors import did_you_mean

RECORDED_OPTIONS = ("output_hidden_states", "output_attentions")
# Keywords that every rung takes, whether its `forward` names them or not.
FORWARD_OPTIONS = (
    *("position_ids", "use_cache", "return_dict", *RECORDED_OPTIONS),
    *("shift_labels", "num_items_in_batch", "skip_logits", "blend_targets"),
)
logger = logging.get_logger(__name__)


@dataclass
class Intermediates:
    """The hidden states and attention weights of one forward pass; None where not asked for."""

    hidden_states: list[Tensor] | None = None
    attentions: list[Tensor] | None = None

    def add_hidden_state(self, hidden: Tensor) -> None:
        """Record the input of a layer, or at the end of the head."""
        if self.hidden_states is not None:
            self.hidden_states.append(hidden)


def accept_forward_options(forward: Callable[..., CausalLMOutputWithPast]) -> Callable[..., Any]:
    """Decorate `forward` to take the options of Hugging Face, by keyword or from the configuration.

    It finds `use_cache` decided, and `intermediates` to fill, among its options. What a rung does
    not have, such as the attention of a counting one, is an empty tuple in the answer. Raises
    `TypeError` for an unknown keyword.
    """
    names = [
        name for name in inspect.signature(forward).parameters if name not in ("self", "options")
    ]

    @wraps(forward)
    def answer(
        self: PreTrainedModel, *args: Any, **given: Any
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        given = _name_arguments(type(self).__name__, names, args, given)
        as_dict, *kinds = (_decide(self, key, given) for key in ("return_dict", *RECORDED_OPTIONS))
        if "inputs_embeds" in names and (given.get("input_ids") is None) == (
            given.get("inputs_embeds") is None
        ):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if (
            "position_ids" not in names
            and (positions := given.pop("position_ids", None)) is not None
        ):
            check_position_ids(positions, given.get("attention_mask"))
        check_past_key_values(self, given.get("past_key_values"))
        _decide_cache(self, given)
        intermediates = Intermediates(*([] if kind else None for kind in kinds))
        output = forward(self, **given, intermediates=intermediates)
        for key in ("hidden_states", "attentions"):
            if (kept := getattr(intermediates, key)) is not None:
                output[key] = tuple(kept)
        return output if as_dict else output.to_tuple()

    # accelerate follows `__wrapped__`, and would call the rung's own function without this one.
    answer.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    del answer.__wrapped__
    return answer


def refuse_continuous_batching(*_: Any, **__: Any) -> NoReturn:
    """Raise `NotImplementedError`: no rung keeps its past in the pages of transformers."""
    raise NotImplementedError(
        "rungs do not support continuous batching: pass rows to generate(), or let `rung serve` "
        "batch texts"
    )


def refuse_to_crop(*_: Any) -> NoReturn:
    """Raise `ValueError`: a drafting model must take tokens back, which no recurrent state can."""
    raise ValueError(
        "a rung that carries a state cannot be an assistant_model: its state takes no token back"
    )


def check_past_key_values(model: PreTrainedModel, past: Any) -> None:
    """Raise `ValueError` for a past of another type than the model returns."""
    takes_cache = model._supports_default_dynamic_cache()
    if past is not None and isinstance(past, Cache) != takes_cache:
        kind = (
            "a `Cache` of transformers"
            if takes_cache
            else "the state that it returned with `use_cache=True`"
        )
        raise ValueError(
            f"past_key_values is a {type(past).__name__}: {type(model).__name__} takes {kind}"
        )


def check_position_ids(
    positions: Int[Tensor, "#B T"], attention_mask: Shaped[Tensor, "B S"] | None
) -> None:
    """Raise `ValueError` for positions that do not rise by one: a recurrent rung cannot jump."""
    is_next = positions.diff(dim=1) == 1
    if attention_mask is not None:
        real = attention_mask[:, -positions.shape[1] :].bool()
        is_next = is_next | ~(real[:, 1:] & real[:, :-1])
    if not bool(is_next.all()):
        raise ValueError(
            "position_ids jump: this rung reads one token after the other, so give each text its "
            "own row"
        )


def _name_arguments(
    model: str, names: list[str], args: tuple[Any, ...], given: dict[str, Any]
) -> dict[str, Any]:
    for name in given:
        if name not in names and name not in FORWARD_OPTIONS:
            near = did_you_mean(name, [*names, *FORWARD_OPTIONS])
            raise TypeError(
                f"{model}.forward() got an unexpected keyword argument {name!r}: {near}"
            )
    if len(args) > len(names):
        raise TypeError(
            f"{model}.forward() takes {len(names)} arguments by position, but {len(args)} were "
            "given"
        )
    placed = dict(zip(names, args, strict=False))
    if twice := sorted(placed.keys() & given.keys()):
        raise TypeError(f"{model}.forward() got multiple values for argument {twice[0]!r}")
    return placed | given


def _decide(model: PreTrainedModel, key: str, given: dict[str, Any]) -> Any:
    """Take an option out of `given`, and return its value or else the configuration's."""
    value = given.pop(key, None)
    return getattr(model.config, key) if value is None else value


def _decide_cache(model: PreTrainedModel, given: dict[str, Any]) -> None:
    """Decide `use_cache`: as the caller says, else outside training as the configuration says."""
    wanted = given.get("use_cache")
    if wanted is None:
        wanted = getattr(model.config, "use_cache", True) and not model.training
    caches = wanted or given.get("past_key_values") is not None
    if (
        caches
        and model.training
        and any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    ):
        logger.warning_once(
            "`use_cache=True` is incompatible with gradient checkpointing. Setting "
            "`use_cache=False`."
        )
        wanted = False
        given["past_key_values"] = None
    given["use_cache"] = bool(wanted)
