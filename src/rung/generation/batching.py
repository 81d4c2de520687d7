"""Texts that share a model's steps: each joins, goes on and leaves when it likes, and has a slot of
its own.

What a text gets depends on nothing but itself: its keys and values stand in memory of their own,
without padding, and a full window is read again for it alone, as `Decoder` does. On a CPU
transformers take all texts a token further in C, and what each gets is the same to the last bit;
elsewhere the model's own forward pass takes them, those with states of one shape together, and what
each gets is the same but for rounding.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from rung.device import count_cores
from rung.generation.native import make_native_step
from rung.models.base import CausalModel, RecurrentState, StatefulModel
from rung.models.kv_cache import KVCache

READ_AT_ONCE = 256  # tokens of a text, between two steps of the others
READ_IN_C = 32  # tokens of a text that the step in C reads sooner than the model's forward pass
SMALLEST = 64  # tokens that a slot has room for at first


class ContinuousBatch:
    """Up to `count` texts that one model goes on with.

    `begin` a text, then in turn: `advance`, which says whose next token is to be chosen, and `put`
    the one chosen.
    """

    def __init__(self, model: CausalModel, count: int) -> None:
        self.model = model
        self.texts: dict[int, _Text] = {}  # those that are read in the order in which they began
        self.free = list(range(count))[::-1]
        self.failed: dict[int, Exception] = {}
        self.reads_oldest = False  # in the next turn
        self.memory: _States | _KeysAndValues
        self.memory = _States(model) if isinstance(model, StatefulModel) else _KeysAndValues(model)

    def begin(self, ids: Sequence[int], wanted: int) -> int:
        """The slot of a new text, which is to be continued by up to `wanted` tokens."""
        slot = self.free.pop()
        self._begin(slot, list(ids), wanted)
        return slot

    def put(self, slot: int, token: int) -> None:
        """The token that follows; where the window is full, the last half of the text is read again
        with it.
        """
        text = self.texts[slot]
        text.ids.append(token)
        text.wanted -= 1
        if text.left:
            text.left, text.next = text.left - 1, token
        else:
            self._begin(slot, text.ids, text.wanted)

    def leave(self, slot: int) -> None:
        """Make room for another text."""
        del self.texts[slot]
        self.memory.forget(slot)
        self.free.append(slot)

    def pause(self, slot: int) -> "_Text":
        """Make room for another text; give what leaves to `resume`, and it goes on as if nothing
        had been.
        """
        text = self.texts[slot]
        self.leave(slot)
        return text

    def resume(self, text: "_Text") -> int:
        """The slot of a text that was paused; all that it looks at is read again."""
        slot = self.free.pop()
        self.texts[slot] = replace(
            text, unread=text.ids, next=None, state=self.memory.begin(len(text.ids))
        )
        return slot

    def advance(self, slots: Sequence[int]) -> tuple[list[int], Float[Tensor, "B V"]]:
        """Which of `slots` are now to `put` a token, and its logits, which the next call may write
        over.

        All that have a token to append take a step; of those that are being read, one reads on.
        Those for which that cannot be done are in `failed` until the next call, each with its
        reason, and can only `leave`.
        """
        self.failed = {}
        ready, logits = self._step_or_fail(
            [slot for slot in slots if self.texts[slot].next is not None]
        )
        reading = self._choose_reading([slot for slot in slots if self.texts[slot].unread])
        if reading is not None:
            logits = [part.clone() for part in logits]  # reading may write over them
            if (last := self._read_or_fail(reading)) is not None:
                ready.append(reading)
                logits.append(last)
        if not logits:
            return [], torch.empty(0, self.model.config.vocab_size)
        return ready, logits[0] if len(logits) == 1 else torch.cat(
            [part.float() for part in logits]
        )

    def _begin(self, slot: int, ids: list[int], wanted: int) -> None:
        if (window := self.model.context_length) and len(ids) > window:
            ids = ids[-(window - min(wanted, max(1, window // 2))) :]
        left = min(wanted, window - len(ids)) if window else wanted
        self.texts.pop(slot, None)  # the last of those that are read
        self.texts[slot] = _Text(
            ids=ids, wanted=wanted, left=left, unread=ids, state=self.memory.begin(len(ids))
        )

    def _choose_reading(self, slots: list[int]) -> int | None:
        """In turn the one that has the least to read, and the one that began first: no short text
        waits for many long ones, and no long one for ever.
        """
        if not slots:
            return None
        self.reads_oldest = not self.reads_oldest
        oldest = next(slot for slot in self.texts if slot in slots)
        return (
            oldest
            if self.reads_oldest
            else min(slots, key=lambda slot: len(self.texts[slot].unread))
        )

    def _read_or_fail(self, slot: int) -> Float[Tensor, "1 V"] | None:
        try:
            return self._read_on(self.texts[slot], slot)
        except Exception as error:  # whatever it is, it is of this text
            self.failed[slot] = error
            return None

    def _read_on(self, text: "_Text", slot: int) -> Float[Tensor, "1 V"] | None:
        """Read some tokens more; when they were the last, the logits of the next one."""
        if (
            len(text.ids) <= READ_IN_C
            and isinstance(self.memory, _KeysAndValues)
            and self.memory.native
        ):
            logits = self.memory.read(slot, text.ids)
            text.state, text.unread = None, []
            return logits
        part = text.unread[:READ_AT_ONCE]
        ids = torch.tensor([part], device=self.model.device)
        output = self.model(ids, past_key_values=text.state, use_cache=True, logits_to_keep=1)
        text.state, text.unread = output.past_key_values, text.unread[READ_AT_ONCE:]
        if text.unread:
            return None
        self.memory.keep(slot, text.state)
        text.state = None
        return output.logits[:, -1]

    def _step_or_fail(self, slots: list[int]) -> tuple[list[int], list[Float[Tensor, "B V"]]]:
        """All together; where that fails each alone, so that those go on which can."""
        if not slots:
            return [], []
        try:
            return slots, [self._step(slots)]
        except Exception as error:
            if len(slots) == 1:
                self.failed[slots[0]] = error
                return [], []
        ready, logits = [], []
        for slot in slots:
            if alone := self._step_or_fail([slot])[1]:
                ready.append(slot)
                logits.append(alone[0].clone())  # the next one may write over it
        return ready, logits

    def _step(self, slots: list[int]) -> Float[Tensor, "B V"]:
        tokens = torch.tensor([self.texts[slot].next for slot in slots], device=self.model.device)
        logits = self.memory.step(slots, tokens)
        for slot in slots:
            self.texts[slot].next = None
        return logits


@dataclass(kw_only=True)
class _Text:
    """A text in its slot: `left` more tokens fit in, `unread` are to be read first, `next` is to be
    appended.
    """

    ids: list[int]  # that the model looks at, those that are to be read or appended among them
    wanted: int
    left: int
    unread: list[int]
    state: Any
    next: int | None = None


class _States:
    """What recurrent and counting rungs remember of each text."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.kept: dict[int, RecurrentState] = {}

    def begin(self, length: int) -> RecurrentState | None:
        """Nothing is remembered yet."""
        return None

    def keep(self, slot: int, state: RecurrentState) -> None:
        self.kept[slot] = state

    def forget(self, slot: int) -> None:
        self.kept.pop(slot, None)

    def step(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """States that differ in shape, as those over texts of different lengths, go one shape after
        another.
        """
        shapes: dict[tuple[torch.Size, ...], list[int]] = {}
        for row, slot in enumerate(slots):
            shapes.setdefault(tuple(part.shape for part in self.kept[slot].tensors), []).append(row)
        found: list[Tensor] = [tokens] * len(slots)
        after: dict[int, RecurrentState] = {}
        for rows in shapes.values():
            logits, states = self._step_alike([self.kept[slots[row]] for row in rows], tokens[rows])
            for place, row in enumerate(rows):
                found[row], after[slots[row]] = logits[place], states[place]
        self.kept |= after  # all, or none where something failed
        return torch.stack(found)

    def _step_alike(
        self, states: list[RecurrentState], tokens: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B V"], list[RecurrentState]]:
        parts = tuple(map(torch.cat, zip(*(state.tensors for state in states), strict=True)))
        output = self.model(
            tokens[:, None], past_key_values=RecurrentState(parts, states[0].length), use_cache=True
        )
        after = output.past_key_values.tensors
        split = [
            RecurrentState(tuple(part[row : row + 1] for part in after), state.length + 1)
            for row, state in enumerate(states)
        ]
        return output.logits[:, -1], split


@dataclass
class _Span:
    """Where a text's keys and values stand: tokens before it, tokens that it has room for, tokens
    that are there.
    """

    start: int
    room: int
    length: int


class _KeysAndValues:
    """Keys and values of all texts, one text behind the other in memory that grows and shrinks with
    them.

    A text has room for twice what it needed last; where it outgrows that it moves behind the
    others. Memory holds half as much again as all have room for, at the most four times; nothing is
    changed before its memory is there.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.native = make_native_step(model)
        if self.native:
            self.native.spare = int(torch.get_num_threads() < count_cores())
        self.spans: dict[int, _Span] = {}
        self.rows: list[
            tuple[Tensor, Tensor]
        ] = []  # of each layer: of each text its groups, of each a row a token
        self.groups: list[int] = []
        self.room = self.end = 0  # tokens: all, and those before what no text has

    def begin(self, length: int) -> KVCache:
        """Memory for the text alone, while it is read."""
        return KVCache(length)

    def keep(self, slot: int, state: KVCache) -> None:
        if not self.rows:
            self._make_layers(state.keys_values)
        self._make_room(slot, state.capacity)
        for layer, pair in enumerate(state.keys_values):
            for mine, its in zip(self._view(layer, self.spans[slot]), pair, strict=True):
                mine[:, : state.capacity].copy_(its[0])
        self.spans[slot].length = state.capacity

    def forget(self, slot: int) -> None:
        """Memory that is mostly free is given back."""
        if self.spans.pop(slot, None) is None:
            return
        if 4 * (sum(span.room for span in self.spans.values()) + SMALLEST) < self.room:
            with suppress(RuntimeError, MemoryError):  # what is there is enough
                self._move(SMALLEST)

    def read(self, slot: int, ids: list[int]) -> Float[Tensor, "1 V"]:
        """Logits of what follows a short text: its tokens are rows of one step."""
        assert self.native is not None
        if not self.rows:
            config = self.model.config
            heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
            size = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
            like = torch.empty(1, heads, 0, size)
            self._make_layers([(like, like)] * config.num_hidden_layers)
        self._make_room(slot, len(ids))
        span = self.spans[slot]
        spans = torch.tensor([[span.start, span.room]]).expand(len(ids), 2)
        logits = self.native.step(torch.tensor(ids), spans, torch.arange(len(ids)))
        span.length = len(ids)
        return logits[-1:]

    def step(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        for slot in slots:
            self._make_room(slot, self.spans[slot].length + 1)
        mine = [self.spans[slot] for slot in slots]
        spans = torch.tensor([[span.start, span.room] for span in mine], device=tokens.device)
        at = torch.tensor([span.length for span in mine], device=tokens.device)
        logits = (
            self.native.step(tokens, spans, at) if self.native else self._forward(tokens, spans, at)
        )
        for span in mine:
            span.length += 1
        return logits

    def _forward(
        self, tokens: Int[Tensor, " B"], spans: Int[Tensor, "B 2"], at: Int[Tensor, " B"]
    ) -> Tensor:
        width = int(at.max()) + 1
        mask = (torch.arange(width, device=at.device) <= at[:, None])[:, None, None]  # B 1 1 S
        cache = _SomeTexts(self, spans, at, width)
        output = self.model(
            tokens[:, None],
            attention_mask=mask,
            position_ids=at[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def _view(self, layer: int, span: _Span) -> list[Tensor]:
        """Keys and values of a text, each (G, room, K)."""
        groups = self.groups[layer]
        return [
            part[span.start * groups : (span.start + span.room) * groups].view(
                groups, span.room, part.shape[1]
            )
            for part in self.rows[layer]
        ]

    def _make_layers(self, like: list[tuple[Tensor, Tensor]]) -> None:
        """Empty memory of every layer, in the shape that these (1, G, T, K) have."""
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
        """For `length` tokens of a text at least, with what stands there."""
        span = self.spans.get(slot, _Span(0, 0, 0))
        if length <= span.room:
            return
        room = max(length, 2 * span.room, SMALLEST)
        room = min(room, max(length, self.model.context_length or room))
        if self.end + room > self.room:
            self._move(room)
            span = self.spans.get(slot, span)
        wider = _Span(self.end, room, span.length)
        for layer in range(len(self.rows)):
            for part, before in zip(self._view(layer, wider), self._view(layer, span), strict=True):
                part.zero_()  # what is behind its end counts nothing, but must be numbers
                part[:, : span.length].copy_(before[:, : span.length])
        if self.native and room > self.native.longest:
            self.native.hold(self.rows, room)
        self.spans[slot], self.end = wider, self.end + room

    def _move(self, more: int) -> None:
        """To memory that has room for all texts, `more` tokens, and half as much again."""
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
                for slot, span in spans.items():
                    start, size = self.spans[slot].start * groups, span.room * groups
                    moved[span.start * groups :][:size] = part[start : start + size]
                parts.append(moved)
            rows.append((parts[0], parts[1]))
        if self.native:
            self.native.hold(rows, max([more, *(span.room for span in spans.values())]))
        self.rows, self.spans, self.room, self.end = rows, spans, room, end


class _SomeTexts(Cache):
    """Keys and values of some texts, each with its own number of tokens, as a model's forward pass
    takes them.
    """

    def __init__(
        self, memory: _KeysAndValues, spans: Int[Tensor, "B 2"], at: Int[Tensor, " B"], width: int
    ) -> None:
        super().__init__(layers=[])
        self.memory, self.spans, self.at, self.width = memory, spans, at, width

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, G, 1, K) where each text has got to; its own come back, with what is behind its
        end.
        """
        keys, values = self.memory.rows[layer_idx]
        at = self._find_rows(self.at[:, None], layer_idx)[..., 0]  # B G
        keys[at], values[at] = key_states[:, :, 0], value_states[:, :, 0]
        seen = torch.arange(self.width, device=at.device).minimum(self.spans[:, 1:] - 1)  # B S
        rows = self._find_rows(seen, layer_idx)
        return keys[rows], values[rows]

    def _find_rows(self, tokens: Int[Tensor, "B S"], layer: int) -> Int[Tensor, "B G S"]:
        """Where these tokens of each text stand."""
        groups = self.memory.groups[layer]
        start, room = self.spans.split(1, dim=1)
        begins = start * groups + torch.arange(groups, device=tokens.device) * room  # B G
        return begins[..., None] + tokens[:, None]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest, without the new one."""
        return self.width - 1
