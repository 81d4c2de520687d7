"""Continuous batching: texts share a model's steps, and join and leave the batch at any time.

What a text gets depends on nothing but itself. Its keys and values stand in memory of their own,
without padding, and a full window is read again for it alone, as `Decoder` does. On a CPU
transformers read and step all texts in C, and what each gets is the same to the last bit in any
batch. Elsewhere the model's forward pass steps those whose states have one shape together, and what
each gets is the same but for rounding; so it is where the forward pass of a bfloat16 model reads a
long prompt. While others write, a chunk is what can be read in the rest of a step's time
(`shared_chunk`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rung.generation.batch_cache import BatchedKVCache, make_batch_cache
from rung.generation.native import SHORT_PROMPT
from rung.models.base import CausalModel

PREFILL_CHUNK = 256  # tokens of a prompt that are read between two steps of the other texts
# While others write, a step takes about so many seconds: decoding, and reading for the rest of it,
# but for so many at least. With fewer threads than the last one it takes twice as long.
STEP_SECONDS, MIN_READING_SECONDS = 0.05, 0.02
MIN_SHARED_CHUNK = 8  # tokens


class ContinuousBatch:
    """Up to `count` texts that one model continues, each in a slot of its own.

    `add` a text, then in turn: `step`, which returns the slots whose next token is to be chosen,
    and `append` the chosen ones.
    """

    def __init__(self, model: CausalModel, count: int) -> None:
        self.model, self.device = model, model.device
        self.texts: dict[int, _Text] = {}  # those with a prompt to read are in the order of joining
        self.free_slots = list(range(count))[::-1]
        self.failed: dict[int, Exception] = {}
        self.reads_oldest = False  # in the next step
        self.cache = make_batch_cache(model)
        # The tokens of the last chunk and the seconds that it took: none yet.
        self.last_chunk: tuple[int, float] = (MIN_SHARED_CHUNK, 1e-9)
        self.decoding_seconds = 0.0  # of the last step

    def add(self, ids: Sequence[int], max_new_tokens: int) -> int:
        """Add a text that is to be continued by up to `max_new_tokens`, and return its slot."""
        slot = self.free_slots.pop()
        self._begin(slot, list(ids), max_new_tokens)
        return slot

    def append(self, slot: int, token: int) -> None:
        """Append the token that was chosen.

        Where the window is full, the last half of the text is read again with it.
        """
        text = self.texts[slot]
        text.ids.append(token)
        text.left -= 1
        if text.room:
            text.room, text.next = text.room - 1, token
        else:
            self._begin(slot, text.ids, text.left)

    def remove(self, slot: int) -> None:
        """Remove a text, and free its slot."""
        del self.texts[slot]
        self.cache.remove(slot)
        self.free_slots.append(slot)

    def pause(self, slot: int) -> "_Text":
        """Remove a text for a while; `resume` takes what this returns and goes on unchanged."""
        text = self.texts[slot]
        self.remove(slot)
        return text

    def resume(self, text: "_Text") -> int:
        """Add a paused text again and return its slot; what the model looks at is read again."""
        slot = self.free_slots.pop()
        state = self.cache.make_state(len(text.ids))
        self.texts[slot] = replace(text, unread=text.ids, next=None, state=state)
        return slot

    def step(self, slots: Sequence[int]) -> tuple[list[int], Float[Tensor, "B V"]]:
        """Decode the texts that have a token to append, and read one prompt a chunk further.

        Returns which of `slots` are now to `append` a token, and its logits, which the next call
        may overwrite. Texts that cannot go on are in `failed` until the next call, each with its
        error; they can only be removed.
        """
        self.failed = {}
        started = time.perf_counter()
        ready, logits = self._decode_or_fail(
            [slot for slot in slots if self.texts[slot].next is not None]
        )
        self.decoding_seconds = time.perf_counter() - started
        reading = self._choose_prompt([slot for slot in slots if self.texts[slot].unread])
        if reading is not None:
            # Reading may overwrite what was decoded.
            logits = [part.clone() for part in logits]
            chunk = self.shared_chunk if ready else PREFILL_CHUNK
            if (last := self._read_or_fail(reading, chunk)) is not None:
                ready.append(reading)
                logits.append(last)
        if not logits:
            return [], torch.empty(0, self.model.config.vocab_size)
        if len(logits) == 1:
            return ready, logits[0]
        return ready, torch.cat([part.float() for part in logits])

    def _begin(self, slot: int, ids: list[int], left: int) -> None:
        if (window := self.model.context_length) and len(ids) > window:
            ids = ids[-(window - min(left, max(1, window // 2))) :]
        room = min(left, window - len(ids)) if window else left
        self.texts.pop(slot, None)  # it goes behind the others that are read
        self.texts[slot] = _Text(
            ids=ids, left=left, room=room, unread=ids, state=self.cache.make_state(len(ids))
        )

    def _choose_prompt(self, slots: list[int]) -> int | None:
        """Choose the shortest prompt and the oldest one in turn.

        So no short prompt waits for many long ones, and no long one for ever.
        """
        if not slots:
            return None
        self.reads_oldest = not self.reads_oldest
        if self.reads_oldest:
            return next(slot for slot in self.texts if slot in slots)
        return min(slots, key=lambda slot: len(self.texts[slot].unread))

    @property
    def shared_chunk(self) -> int:
        """The tokens to read in a step in which others write.

        They take the rest of `STEP_SECONDS`, at the pace of the last chunk; and they are at most
        twice as many, for the pace may change with their number.
        """
        if self.device.type != "cpu":
            return PREFILL_CHUNK
        tokens, seconds = self.last_chunk
        rest = max(STEP_SECONDS - self.decoding_seconds, MIN_READING_SECONDS)
        wanted = min(int(tokens * rest / seconds), 2 * tokens)
        return min(max(wanted, MIN_SHARED_CHUNK), PREFILL_CHUNK)

    def _read_or_fail(self, slot: int, chunk: int) -> Float[Tensor, "1 V"] | None:
        text, started = self.texts[slot], time.perf_counter()
        unread = len(text.unread)
        try:
            logits = self._read_chunk(text, slot, chunk)
            # The rest of a prompt says little: few tokens take longer each.
            if (read := unread - len(text.unread)) >= chunk:
                self.last_chunk = read, max(1e-9, time.perf_counter() - started)
            return logits
        # Whatever it is, it is the fault of this text.
        except Exception as error:
            self.failed[slot] = error
            return None

    def _read_chunk(self, text: "_Text", slot: int, chunk: int) -> Float[Tensor, "1 V"] | None:
        """Read up to `chunk` tokens of a prompt; after the last one return the next logits."""
        cache = self.cache
        if isinstance(cache, BatchedKVCache) and cache.native:
            is_short = min(chunk, len(text.ids)) <= cache.native.longest_prompt
            if is_short or text.state is None:
                return self._read_in_slot(cache, text, slot, chunk)
        chunk = chunk if self.model.carries_state else len(text.unread)
        ids = torch.tensor([text.unread[:chunk]], device=self.device)
        output = self.model(ids, past_key_values=text.state, use_cache=True, logits_to_keep=1)
        text.state, text.unread = output.past_key_values, text.unread[chunk:]
        if text.unread:
            return None
        cache.store(slot, text.state)
        text.state = None
        return output.logits[:, -1]

    def _read_in_slot(
        self, cache: BatchedKVCache, text: "_Text", slot: int, chunk: int
    ) -> Float[Tensor, "1 V"] | None:
        """Read a chunk, or a short prompt whole, in C; the rest of the prompt too."""
        assert cache.native is not None
        if text.state is not None and text.state.get_seq_length():
            cache.store(slot, text.state)
        text.state = None
        is_short = len(text.ids) <= SHORT_PROMPT
        size = SHORT_PROMPT if is_short else min(chunk, cache.native.longest_prompt)
        start = len(text.ids) - len(text.unread)
        part, text.unread = text.unread[:size], text.unread[size:]
        cache.reserve(slot, len(text.ids))
        logits = cache.prefill(slot, part, start)
        return None if text.unread else logits

    def _decode_or_fail(self, slots: list[int]) -> tuple[list[int], list[Float[Tensor, "B V"]]]:
        """Decode all together; where that fails, each alone, so that one error ends one text."""
        if not slots:
            return [], []
        try:
            return slots, [self._decode(slots)]
        except Exception as error:
            if len(slots) == 1:
                self.failed[slots[0]] = error
                return [], []
        ready, logits = [], []
        for slot in slots:
            if alone := self._decode_or_fail([slot])[1]:
                ready.append(slot)
                logits.append(alone[0].clone())  # the next one may overwrite it
        return ready, logits

    def _decode(self, slots: list[int]) -> Float[Tensor, "B V"]:
        tokens = torch.tensor([self.texts[slot].next for slot in slots], device=self.device)
        logits = self.cache.decode(slots, tokens)
        for slot in slots:
            self.texts[slot].next = None
        return logits


@dataclass(kw_only=True)
class _Text:
    """A text in its slot; `unread` ids are to be read first, `next` is the token to decode."""

    ids: list[int]  # what the model looks at, `unread` and `next` among them
    left: int  # tokens that are wanted
    room: int  # tokens that fit the window
    unread: list[int]
    state: Any  # of what is read; None where that stands in the slot
    next: int | None = None
