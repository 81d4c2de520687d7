"""Any other causal language model, as the ruler and generation see it.

What `AutoModelForCausalLM` opens and rung has no code for is asked through transformers' own code.
Nothing is believed for the name of an architecture: the model itself is asked whether it is causal,
whether its head comes last, and whether its state can be carried from chunk to chunk.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.errors import RunError, first_line
from rung.models.base import CausalModel, check_finite, select_positions

# Tokens, for a model that names no window and carries no state; lm-evaluation-harness's own number.
DEFAULT_WINDOW = 2048
WINDOW_FIELDS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    *("max_sequence_length", "seq_length"),
)
# The names that models give to their past, in what they take and in what they return.
STATE_NAMES = ("past_key_values", "cache_params", "state")
PROBE_TOKENS = 8
# The largest difference between logits that is rounding, in shares of the largest logit.
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass
class ForeignState:
    """A text's past: its ids, and the model's own state after them.

    `past` is None for a model that returns no state, or one that its own steps go wrong with.
    """

    ids: Int[Tensor, "B T"]
    past: Any

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens read."""
        return self.ids.shape[1]


@dataclass
class RowStates:
    """The states of texts of unequal length, which are read one by one."""

    rows: list[ForeignState]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens of the longest text."""
        return max(row.get_seq_length() for row in self.rows)


class ForeignForCausalLM(CausalModel):
    """A causal language model in transformers' own code; it can be asked, and not trained here.

    Rows with padding on the left are read one by one, for not every model knows of padding. Raises
    `RunError` for a model whose predictions depend on later tokens.
    """

    def __init__(self, inner: PreTrainedModel) -> None:
        nn.Module.__init__(self)  # a `PreTrainedModel` would set the configuration up once more
        self.inner = inner
        self.config = inner.config.get_text_config()
        self.generation_config = inner.generation_config
        self.options = inspect.signature(inner.forward).parameters
        self.is_head_last = _probe_head(self)

    @property
    def context_length(self) -> int | None:
        """The number of tokens it reads at once: `window`, or what its configuration names.

        None where it names nothing and carries a state; 2,048 where it has no state to carry.
        """
        if self.window or (named := find_named_window(self)):
            return self.window or named
        return None if self.inner._is_stateful and self.carries_state else DEFAULT_WINDOW

    @property
    def max_context_length(self) -> int | None:
        """The number of positions that the model has; None where they are computed."""
        return find_learned_positions(self)

    @cached_property
    def keeps_state(self) -> bool:
        """Whether a text can be continued by the model's own state, token by token."""
        return self._agrees_with_whole(PROBE_TOKENS - 2, PROBE_TOKENS - 1, PROBE_TOKENS)

    @cached_property
    def carries_state(self) -> bool:
        """Whether reading a text in chunks gives what reading it whole does."""
        return self.keeps_state and self._agrees_with_whole(PROBE_TOKENS // 2, PROBE_TOKENS)

    @torch.no_grad()
    def _agrees_with_whole(self, *ends: int) -> bool:
        """Return whether a text read in pieces up to these ends has the logits of the whole."""
        ids, past, logits, start = _probe_ids(self)[:1], None, [], 0
        whole, _ = self._ask(ids)
        for end in ends:
            try:
                found, past = self._ask(ids[:, start:end], past, start, use_cache=True)
            except Exception:  # of any kind, where a state takes one token at a time, or none
                return False
            if past is None:
                return False
            logits.append(found)
            start = end
        return _are_equal(torch.cat(logits, dim=1), whole)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head, or None where the model changes what the head returns."""
        return self.inner.get_output_embeddings() if self.is_head_last else None

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Shaped[Tensor, "B S"] | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V) of the token after each, and with `use_cache` the state."""
        state, steps = past_key_values, input_ids.shape[1]
        if isinstance(state, RowStates) or (
            attention_mask is not None and state is None and not attention_mask.all()
        ):
            return self._read_rows(input_ids, attention_mask, state, logits_to_keep)
        ids = input_ids if state is None else torch.cat([state.ids, input_ids], dim=1)
        past = None if state is None else state.past
        start = ids.shape[1] - steps if past is not None else 0
        caches = use_cache and self.keeps_state
        logits, past = self._ask(ids[:, start:], past, start, caches, logits_to_keep or steps)
        return CausalLMOutputWithPast(
            logits=logits, past_key_values=ForeignState(ids, past) if use_cache else None
        )

    def _ask(
        self,
        ids: Int[Tensor, "B T"],
        past: Any = None,
        start: int = 0,
        use_cache: bool = False,
        kept: int = 0,
    ) -> tuple[Float[Tensor, "B kept V"], Any]:
        """Return the model's logits of the last `kept` tokens, all with 0, and its own state.

        The first of the tokens stands at position `start`.
        """
        given: dict[str, Any] = {"use_cache": use_cache}
        if past is not None:
            given[next(name for name in STATE_NAMES if name in self.options)] = past
            if "position_ids" in self.options:
                positions = torch.arange(start, start + ids.shape[1], device=ids.device)
                given["position_ids"] = positions.expand(ids.shape)
        if 0 < kept < ids.shape[1] and "logits_to_keep" in self.options:
            given["logits_to_keep"] = kept
        output = self.inner(ids, **given)
        states = (output.get(name) for name in STATE_NAMES) if use_cache else ()
        found = next((state for state in states if state is not None), None)
        return select_positions(output.logits, kept), found

    def _read_rows(
        self, ids: Tensor, mask: Tensor | None, states: RowStates | None, kept: int
    ) -> CausalLMOutputWithPast:
        """Read the rows one by one; `mask` marks the padding of a first call."""
        outputs = [
            self(
                row[None] if states or mask is None else row[mask[place].bool()][None],
                past_key_values=states.rows[place] if states else None,
                use_cache=True,
                logits_to_keep=kept,
            )
            for place, row in enumerate(ids)
        ]
        return CausalLMOutputWithPast(
            logits=torch.cat([output.logits[:, -(kept or ids.shape[1]) :] for output in outputs]),
            past_key_values=RowStates([output.past_key_values for output in outputs]),
        )

    def generate(self, *args: Any, **options: Any) -> Any:
        """Generate as the model's own class does."""
        return self.inner.generate(*args, **options)

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Save the model in transformers' own form."""
        self.inner.save_pretrained(save_directory, **options)


def wrap_foreign(where: str, inner: PreTrainedModel) -> "ForeignForCausalLM":
    """Make a model of transformers one that the ruler and generation can ask.

    Raises `RunError` where it is not causal, or does not work.
    """
    try:
        return ForeignForCausalLM(inner.eval())
    except RunError as error:
        raise RunError(f"{where}: {error}") from error
    except Exception as error:  # of any kind: the code is not ours
        raise RunError(f"{where}: the model does not work ({first_line(error)})") from error


def find_named_window(model: ForeignForCausalLM) -> int | None:
    """Return the window that a model's configuration names, or None."""
    named = (getattr(model.config, name, None) for name in WINDOW_FIELDS)
    return next((size for size in named if isinstance(size, int) and size > 0), None)


def find_learned_positions(model: ForeignForCausalLM) -> int | None:
    """Return how many positions a model has in a table; None where it computes them.

    The table is an embedding or a buffer that is named after positions and has a row for each of
    them, and in some models a few more.
    """
    named = find_named_window(model)
    tables = [*model.inner.named_parameters(), *model.inner.named_buffers()]
    is_learned = named is not None and any(
        ("position" in name or "wpe" in name) and part.dim() == 2 and part.shape[0] >= named
        for name, part in tables
    )
    return named if is_learned else None


def count_embeddings(model: ForeignForCausalLM) -> int:
    """Return the number of token ids that a model knows, padding of the vocabulary included."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])


def _probe_ids(model: ForeignForCausalLM) -> Int[Tensor, "2 T"]:
    """Return two rows of token ids that differ in the last one."""
    ids = (torch.arange(2 * PROBE_TOKENS) % count_embeddings(model)).view(2, -1)
    ids[1, :-1] = ids[0, :-1]
    return ids.to(model.device)


@torch.no_grad()
def _probe_head(model: ForeignForCausalLM) -> bool:
    """Return whether a model's logits are what its head returns, as they are.

    Raises `RunError` where the logits before a token depend on it, or are no numbers.
    """
    head, states = model.inner.get_output_embeddings(), []
    ids = _probe_ids(model)
    if head is None:
        logits, _ = model._ask(ids)
    else:
        hook = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        try:
            logits, _ = model._ask(ids)
        finally:
            hook.remove()
    check_finite(logits)
    if not _are_equal(logits[0, :-1], logits[1, :-1]):
        raise RunError(
            f"a {model.config.model_type!r} model is not causal: what it says of a token depends "
            "on later ones, so it has no score; name a causal language model"
        )
    return len(states) == 1 and torch.equal(head(states[0]).float(), logits.float())


def _are_equal(one: Float[Tensor, "*rest"], other: Float[Tensor, "*rest"]) -> bool:
    """Return whether logits are the same but for rounding."""
    largest = other.abs().max().item()
    return bool(((one - other).abs().max() <= ROUNDING.get(other.dtype, 5e-2) * largest).item())
