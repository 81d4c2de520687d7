"""Texts that share a model's steps: each joins, goes on and leaves when it likes, and has a slot of its own.

What a text gets depends on nothing but itself: its keys and values stand in a row of their own, without padding, and
a full window is read again for it alone, as `Decoder` does. On a CPU transformers take all texts a token further in
C, and what each gets is the same to the last bit; elsewhere the model's own forward pass takes them, those with
states of one shape together, and what each gets is the same but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from rung.device import count_cores
from rung.generate.native import native_step
from rung.models import CausalModel
from rung.models.causal import KeyValues, State, StatefulModel

READ_AT_ONCE = 256  # tokens of a text, between two steps of the others
READ_IN_C = 32  # tokens of a text that the step in C reads sooner than the model's forward pass
SMALLEST = 64  # tokens that a slot has room for at first


class Slots:
    """Up to `count` texts that one model goes on with.

    `begin` a text, then in turn: `advance`, which says whose next token is to be chosen, and `put` the one chosen.
    """

    def __init__(self, model: CausalModel, count: int) -> None:
        self.model = model
        self.texts: dict[int, _Text] = {}  # those that are read in the order of their turns
        self.free = list(range(count))[::-1]
        self.memory: _States | _KeysAndValues
        self.memory = _States(model) if isinstance(model, StatefulModel) else _KeysAndValues(model, count)

    def begin(self, ids: Sequence[int], wanted: int) -> int:
        """The slot of a new text, which is to be continued by up to `wanted` tokens."""
        slot = self.free.pop()
        self._begin(slot, list(ids), wanted)
        return slot

    def put(self, slot: int, token: int) -> None:
        """The token that follows; where the window is full, the last half of the text is read again with it."""
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

    def advance(self, slots: Sequence[int]) -> tuple[list[int], Float[Tensor, "B V"]]:
        """Which of `slots` are now to `put` a token, and its logits, which the next call may write over.

        All that have a token to append take a step; of those that are being read, the first reads on.
        """
        ready = [slot for slot in slots if self.texts[slot].next is not None]
        logits = [self._step(ready)] if ready else []
        reading = next((slot for slot, text in self.texts.items() if text.unread and slot in slots), None)
        if reading is not None:
            logits = [part.clone() for part in logits]  # reading may write over them
            if (last := self._read_on(self.texts[reading], reading)) is not None:
                ready.append(reading)
                logits.append(last)
        if not logits:
            return [], torch.empty(0, self.model.config.vocab_size)
        return ready, logits[0] if len(logits) == 1 else torch.cat([part.float() for part in logits])

    def _begin(self, slot: int, ids: list[int], wanted: int) -> None:
        if (window := self.model.context_length) and len(ids) > window:
            ids = ids[-(window - min(wanted, max(1, window // 2))) :]
        left = min(wanted, window - len(ids)) if window else wanted
        self.texts.pop(slot, None)  # the last of those that are read
        self.texts[slot] = _Text(ids=ids, wanted=wanted, left=left, unread=ids, state=self.memory.begin(len(ids)))

    def _read_on(self, text: "_Text", slot: int) -> Float[Tensor, "1 V"] | None:
        """Read some tokens more; when they were the last, the logits of the next one."""
        if len(text.ids) <= READ_IN_C and isinstance(self.memory, _KeysAndValues) and self.memory.native:
            text.state, text.unread = None, []
            return self.memory.read(slot, text.ids)
        part, text.unread = text.unread[:READ_AT_ONCE], text.unread[READ_AT_ONCE:]
        ids = torch.tensor([part], device=self.model.device)
        output = self.model(ids, past_key_values=text.state, use_cache=True, logits_to_keep=1)
        text.state = output.past_key_values
        if text.unread:
            return None
        self.memory.keep(slot, text.state)
        text.state = None
        return output.logits[:, -1]

    def _step(self, slots: list[int]) -> Float[Tensor, "B V"]:
        tokens = torch.tensor([self.texts[slot].next for slot in slots], device=self.model.device)
        for slot in slots:
            self.texts[slot].next = None
        return self.memory.step(slots, tokens)


@dataclass(kw_only=True)
class _Text:
    """A text in its slot: `left` more tokens fit in, `unread` are to be read first, `next` is to be appended."""

    ids: list[int]
    wanted: int
    left: int
    unread: list[int]
    state: Any
    next: int | None = None


class _States:
    """What recurrent and counting rungs remember of each text."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.kept: dict[int, State] = {}

    def begin(self, length: int) -> State | None:
        """Nothing is remembered yet."""
        return None

    def keep(self, slot: int, state: State) -> None:
        self.kept[slot] = state

    def forget(self, slot: int) -> None:
        self.kept.pop(slot, None)

    def step(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """States that differ in shape, as those over texts of different lengths, go one shape after another."""
        shapes: dict[tuple[torch.Size, ...], list[int]] = {}
        for row, slot in enumerate(slots):
            shapes.setdefault(tuple(part.shape for part in self.kept[slot].tensors), []).append(row)
        found: list[Tensor] = [tokens] * len(slots)
        for rows in shapes.values():
            for row, logits in zip(rows, self._step_alike([slots[row] for row in rows], tokens[rows]), strict=True):
                found[row] = logits
        return torch.stack(found)

    def _step_alike(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        states = [self.kept[slot] for slot in slots]
        parts = tuple(map(torch.cat, zip(*(state.tensors for state in states), strict=True)))
        output = self.model(tokens[:, None], past_key_values=State(parts, states[0].length), use_cache=True)
        after = output.past_key_values.tensors
        for row, (slot, state) in enumerate(zip(slots, states, strict=True)):
            self.kept[slot] = State(tuple(part[row : row + 1] for part in after), state.length + 1)
        return output.logits[:, -1]


class _KeysAndValues:
    """Keys and values of all slots, a row each; the rows are made longer when a text outgrows them."""

    def __init__(self, model: CausalModel, count: int) -> None:
        self.model, self.count = model, count
        self.native = native_step(model)
        if self.native:
            self.native.spare = int(torch.get_num_threads() < count_cores())
        self.lengths = [0] * count
        self.pool = KeyValues(0)

    def begin(self, length: int) -> KeyValues:
        """Memory for the text alone, while it is read."""
        return KeyValues(length)

    def keep(self, slot: int, state: KeyValues) -> None:
        self._make_room(state.room, state)
        for (keys, values), (its_keys, its_values) in zip(self.pool.rows, state.rows, strict=True):
            keys[slot, :, : state.room].copy_(its_keys[0])
            values[slot, :, : state.room].copy_(its_values[0])
        self.lengths[slot] = state.room

    def forget(self, slot: int) -> None:
        self.lengths[slot] = 0

    def read(self, slot: int, ids: list[int]) -> Float[Tensor, "1 V"]:
        """Logits of what follows a short text: its tokens are rows of one step."""
        assert self.native is not None
        self._make_room(len(ids), self.pool if self.pool.rows else self._make_layers())
        self.lengths[slot] = len(ids)
        logits = self.native.step(torch.tensor(ids), torch.full((len(ids),), slot), torch.arange(len(ids)))
        return logits[-1:]

    def _make_layers(self) -> KeyValues:
        """Empty rows of every layer, in the shape that the model has them."""
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        size = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        like = KeyValues(0)
        like.rows = [(torch.empty(1, heads, 0, size), torch.empty(1, heads, 0, size))] * config.num_hidden_layers
        return like

    def step(self, slots: list[int], tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        places = [self.lengths[slot] for slot in slots]
        self._make_room(max(places) + 1, self.pool)
        for slot in slots:
            self.lengths[slot] += 1
        rows, at = (torch.tensor(numbers, device=tokens.device) for numbers in (slots, places))
        if self.native:
            return self.native.step(tokens, rows, at)
        width = max(places) + 1
        mask = (torch.arange(width, device=at.device) <= at[:, None])[:, None, None]  # B 1 1 S
        cache = _SomeRows(self.pool, rows, at, width)
        output = self.model(
            tokens[:, None], attention_mask=mask, position_ids=at[:, None], past_key_values=cache, use_cache=True
        )
        return output.logits[:, -1]

    def _make_room(self, length: int, like: KeyValues) -> None:
        """Rows for `length` tokens at least, with what stands in them; `like` has layers of the same shape."""
        if length <= self.pool.room:
            return
        room = max(length, 2 * self.pool.room, SMALLEST)
        room = min(room, max(length, self.model.context_length or room))
        old, self.pool = self.pool, KeyValues(room)
        for layer, pair in enumerate(like.rows):
            longer = []
            for which, part in enumerate(pair):
                dtype = torch.float32 if self.native else part.dtype
                row = part.new_zeros((self.count, part.shape[1], room, part.shape[3]), dtype=dtype)
                if old.rows:
                    row[:, :, : old.room] = old.rows[layer][which]
                longer.append(row)
            self.pool.rows.append((longer[0], longer[1]))
        if self.native:
            self.native.begin(self.pool, torch.zeros(self.count, dtype=torch.long))


class _SomeRows(Cache):
    """Some rows of the pool, each with its own number of tokens, as a model's forward pass takes them."""

    def __init__(self, pool: KeyValues, rows: Int[Tensor, " B"], at: Int[Tensor, " B"], width: int) -> None:
        super().__init__(layers=[])
        self.pool, self.rows, self.at, self.width = pool, rows, at, width

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, G, 1, K) where each text has got to; its row comes back, with what is behind its end."""
        keys, values = self.pool.rows[layer_idx]
        keys[self.rows, :, self.at] = key_states[:, :, 0]
        values[self.rows, :, self.at] = value_states[:, :, 0]
        return keys[self.rows, :, : self.width], values[self.rows, :, : self.width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest, without the new one."""
        return self.width - 1
