"""The states, or keys and values, of the texts in a batch, kept apart by slot."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from rung.device import count_cores
from rung.generation.native import make_native_step
from rung.models.base import CausalModel, RecurrentState, StatefulModel
from rung.models.kv_cache import KVCache

MIN_SLOT_ROOM = 64  # tokens that a slot has room for at first


class BatchedStates:
    """The states of recurrent and counting rungs, one for each text.

    Those of texts that were decoded together and are alike stay together until others are wanted.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.states: dict[int, RecurrentState] = {}
        self.together: tuple[list[int], RecurrentState] | None = None  # slots, and their states

    def make_state(self, length: int) -> RecurrentState | None:
        """Return the state that a prompt of `length` tokens is read with: none yet."""
        return None

    def store(self, slot: int, state: RecurrentState) -> None:
        self._part()
        self.states[slot] = state

    def remove(self, slot: int) -> None:
        self._part()
        self.states.pop(slot, None)

    def decode(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append a token to each text and return the logits of the next ones.

        States that differ in shape, as those over texts of different lengths, go one shape after
        another.
        """
        if self.together and self.together[0] == slots:
            logits, state = self._decode_alike(self.together[1], tokens)
            self.together = slots, state
            return logits
        self._part()
        shapes: dict[tuple[torch.Size, ...], list[int]] = {}
        for row, slot in enumerate(slots):
            shape = tuple(part.shape for part in self.states[slot].tensors)
            shapes.setdefault(shape, []).append(row)
        found: list[tuple[list[int], Tensor, RecurrentState]] = []
        for rows in shapes.values():
            joined = _join_states([self.states[slots[row]] for row in rows])
            found.append((rows, *self._decode_alike(joined, tokens[rows])))
        if len(found) == 1:  # the rows are in their order
            self.together = list(slots), found[0][2]
            return found[0][1]
        logits = found[0][1].new_empty(len(slots), found[0][1].shape[1])
        for rows, its_logits, state in found:  # all, or none where something failed
            logits[rows] = its_logits
            self.states |= zip(
                [slots[row] for row in rows], _part_states(state, len(rows)), strict=True
            )
        return logits

    def _part(self) -> None:
        """Give each text that was decoded together with others a state of its own."""
        if self.together:
            self.states |= zip(
                self.together[0], _part_states(self.together[1], len(self.together[0])), strict=True
            )
            self.together = None

    def _decode_alike(
        self, state: RecurrentState, tokens: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B V"], RecurrentState]:
        output = self.model(tokens[:, None], past_key_values=state, use_cache=True)
        after = RecurrentState(output.past_key_values.tensors, state.length + 1)
        return output.logits[:, -1], after


def _join_states(states: list[RecurrentState]) -> RecurrentState:
    parts = tuple(map(torch.cat, zip(*(state.tensors for state in states), strict=True)))
    return RecurrentState(parts, states[0].length)


def _part_states(joined: RecurrentState, count: int) -> list[RecurrentState]:
    """Return the states of `count` texts; views, which keep all of them in memory."""
    return [
        RecurrentState(tuple(part[row : row + 1] for part in joined.tensors), joined.length)
        for row in range(count)
    ]


class ForeignStates:
    """The states of a model that is no rung, whose form is its own: each text is a batch of one."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.states: dict[int, Any] = {}

    def make_state(self, length: int) -> None:
        """Return the state that a prompt is read with: none yet."""

    def store(self, slot: int, state: Any) -> None:
        self.states[slot] = state

    def remove(self, slot: int) -> None:
        self.states.pop(slot, None)

    def decode(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append a token to each text and return the logits of the next ones."""
        found = []
        for slot, token in zip(slots, tokens, strict=True):
            output = self.model(
                token[None, None], past_key_values=self.states[slot], use_cache=True
            )
            self.states[slot] = output.past_key_values
            found.append(output.logits[:, -1])
        return torch.cat(found)


@dataclass
class _Span:
    """Where a text's keys and values stand in memory, in tokens."""

    start: int
    room: int
    length: int


class BatchedKVCache:
    """The keys and values of all texts, one text behind the other in memory that follows them.

    A text that outgrows its room moves behind the others and gets twice as much. Memory holds half
    as much again as all texts have room for, and at most four times as much. Nothing is changed
    before its memory is there.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.native = make_native_step(model)
        if self.native:
            self.native.spare_cores = int(torch.get_num_threads() < count_cores())
        self.spans: dict[int, _Span] = {}
        # Keys and values of each layer: of each text its groups, of each group a row a token.
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.groups: list[int] = []
        self.room = self.end = 0  # tokens: all, and those before the free memory

    def make_state(self, length: int) -> KVCache:
        """Make memory of its own for a prompt while it is read."""
        return KVCache(length)

    def store(self, slot: int, state: KVCache) -> None:
        """Copy the keys and values of a prompt, or of its beginning; there is room for all."""
        if not self.rows:
            self._make_layers(state.keys_values)
        self._make_room(slot, state.capacity)
        for layer, pair in enumerate(state.keys_values):
            for mine, its in zip(self._view(layer, self.spans[slot]), pair, strict=True):
                mine[:, : state.capacity].copy_(its[0])
        self.spans[slot].length = state.get_seq_length()

    def remove(self, slot: int) -> None:
        """Remove a text, and give back memory that is mostly free."""
        if self.spans.pop(slot, None) is None:
            return
        if 4 * (sum(span.room for span in self.spans.values()) + MIN_SLOT_ROOM) < self.room:
            # Without memory for the move, what is there is enough.
            with suppress(RuntimeError, MemoryError):
                self._move(MIN_SLOT_ROOM)

    def reserve(self, slot: int, length: int) -> None:
        """Give a text that is read in C room for `length` tokens."""
        assert self.native is not None
        if not self.rows:
            like = torch.empty(1, self.native.groups, 0, self.native.size)
            self._make_layers([(like, like)] * len(self.native.layers))
        if slot not in self.spans or length > self.spans[slot].room:
            self._make_room(slot, length)

    def prefill(self, slot: int, ids: list[int], start: int = 0) -> Float[Tensor, "1 V"]:
        """Read a few tokens behind the first `start` in C, as rows of one step.

        Returns the next logits, which the next step may overwrite.
        """
        return self.extend([slot], [ids], {slot: start})

    def extend(
        self,
        slots: Sequence[int],
        pieces: Sequence[Sequence[int]],
        starts: Mapping[int, int],
    ) -> Float[Tensor, "B V"]:
        """Append a piece to each text in one step in C, and return the logits of the next tokens.

        The pieces of the slots in `starts` stand behind so many tokens of their texts. The next
        step may overwrite the logits.
        """
        assert self.native is not None
        lengths = [starts[slot] if slot in starts else self.spans[slot].length for slot in slots]
        for slot, piece, length in zip(slots, pieces, lengths, strict=True):
            self.reserve(slot, length + len(piece))
        spans = [self.spans[slot] for slot in slots]
        # The last token of each piece stands in the last rows, of which logits are wanted.
        rows = [
            (token, span.start, span.room, at)
            for span, piece, length in zip(spans, pieces, lengths, strict=True)
            for at, token in enumerate(piece[:-1], start=length)
        ] + [
            (piece[-1], span.start, span.room, length + len(piece) - 1)
            for span, piece, length in zip(spans, pieces, lengths, strict=True)
        ]
        logits = self.native.step(rows, wanted=len(slots))
        for span, piece, length in zip(spans, pieces, lengths, strict=True):
            span.length = length + len(piece)
        return logits

    def decode(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append a token to each text and return the logits of the next ones."""
        if self.native:
            return self.extend(slots, [[token] for token in tokens.tolist()], {})
        for slot in slots:
            self._make_room(slot, self.spans[slot].length + 1)
        mine = [self.spans[slot] for slot in slots]
        spans = torch.tensor([[span.start, span.room] for span in mine], device=tokens.device)
        at = torch.tensor([span.length for span in mine], device=tokens.device)
        logits = self._forward(tokens, spans, at)
        for span in mine:
            span.length += 1
        return logits

    def _forward(
        self, tokens: Int[Tensor, " B"], spans: Int[Tensor, "B 2"], at: Int[Tensor, " B"]
    ) -> Tensor:
        width = int(at.max()) + 1
        mask = (torch.arange(width, device=at.device) <= at[:, None])[:, None, None]  # B 1 1 S
        output = self.model(
            tokens[:, None],
            attention_mask=mask,
            position_ids=at[:, None],
            past_key_values=_RaggedCache(self, spans, at, width),
            use_cache=True,
        )
        return output.logits[:, -1]

    def _view(self, layer: int, span: _Span) -> list[Tensor]:
        """View the keys and values of a text, each (G, room, K)."""
        groups = self.groups[layer]
        return [
            part[span.start * groups : (span.start + span.room) * groups].view(
                groups, span.room, part.shape[1]
            )
            for part in self.rows[layer]
        ]

    def _make_layers(self, like: list[tuple[Tensor, Tensor]]) -> None:
        """Make empty memory of every layer, for keys and values like these (1, G, T, K)."""
        self.groups = [keys.shape[1] for keys, _ in like]
        dtypes = [torch.float32 if self.native else keys.dtype for keys, _ in like]
        self.rows = [
            (
                keys.new_empty(0, keys.shape[3], dtype=dtype),
                values.new_empty(0, values.shape[3], dtype=dtype),
            )
            for (keys, values), dtype in zip(like, dtypes, strict=True)
        ]

    def _make_room(self, slot: int, length: int) -> None:
        """Give a text room for `length` tokens at least, and keep what it has."""
        span = self.spans.get(slot, _Span(0, 0, 0))
        if length <= span.room:
            return
        room = max(length, 2 * span.room, MIN_SLOT_ROOM)
        room = min(room, max(length, self.model.context_length or room))
        if self.end + room > self.room:
            self._move(room)
            span = self.spans.get(slot, span)
        wider = _Span(self.end, room, span.length)
        for layer in range(len(self.rows)):
            for part, before in zip(self._view(layer, wider), self._view(layer, span), strict=True):
                part[:, : span.length].copy_(before[:, : span.length])
                # What is behind its end counts nothing, but must be numbers.
                part[:, span.length :].zero_()
        if self.native and room > self.native.max_length:
            self.native.use_memory(self.rows, room)
        self.spans[slot], self.end = wider, self.end + room

    def _move(self, more: int) -> None:
        """Move to memory with room for all texts, `more` tokens, and half as much again."""
        spans: dict[int, _Span] = {}
        end = 0
        for slot, span in self.spans.items():
            spans[slot] = _Span(end, span.room, span.length)
            end += span.room
        room = (end + more) * 3 // 2
        rows = []
        for layer, pair in enumerate(self.rows):
            groups = self.groups[layer]
            parts = []
            for part in pair:
                moved = part.new_empty(room * groups, part.shape[1])
                texts = [
                    part[span.start * groups : (span.start + span.room) * groups]
                    for span in self.spans.values()
                ]
                if texts:
                    torch.cat(texts, out=moved[: end * groups])
                parts.append(moved)
            rows.append((parts[0], parts[1]))
        if self.native:
            self.native.use_memory(rows, max([more, *(span.room for span in spans.values())]))
        self.rows, self.spans, self.room, self.end = rows, spans, room, end


def make_batch_cache(model: CausalModel) -> BatchedStates | BatchedKVCache | ForeignStates:
    """Make what keeps the states of a model's texts apart."""
    if isinstance(model, StatefulModel):
        return BatchedStates(model)
    return (
        BatchedKVCache(model) if model._supports_default_dynamic_cache() else ForeignStates(model)
    )


class _RaggedCache(Cache):
    """Keys and values of texts of unequal length, as a model's forward pass takes them."""

    def __init__(
        self, cache: BatchedKVCache, spans: Int[Tensor, "B 2"], at: Int[Tensor, " B"], width: int
    ) -> None:
        super().__init__(layers=[])
        self.cache, self.spans, self.at, self.width = cache, spans, at, width

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, G, 1, K) at each text's end; return its keys and values, padded behind it."""
        keys, values = self.cache.rows[layer_idx]
        at = self._find_rows(self.at[:, None], layer_idx)[..., 0]  # B G
        keys[at], values[at] = key_states[:, :, 0], value_states[:, :, 0]
        seen = torch.arange(self.width, device=at.device).minimum(self.spans[:, 1:] - 1)  # B S
        rows = self._find_rows(seen, layer_idx)
        return keys[rows], values[rows]

    def _find_rows(self, tokens: Int[Tensor, "B S"], layer: int) -> Int[Tensor, "B G S"]:
        """Find the rows where these tokens of each text stand."""
        groups = self.cache.groups[layer]
        start, room = self.spans.split(1, dim=1)
        begins = start * groups + torch.arange(groups, device=tokens.device) * room  # B G
        return begins[..., None] + tokens[:, None]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest text, without the new token."""
        return self.width - 1
