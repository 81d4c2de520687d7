"""Step neural models through texts in slots, a token of each at a time, as generation does.

Transformers take the C step of `generation/native.py` where there is one, in which what a text gets
depends on nothing beside it, and which reads new windows in the step of the other texts. The
windows of a long text are those of the ruler: a full one is read again from where the ruler's next
window begins.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from rung.evaluation.likelihood import choose_stride
from rung.generation.batch_cache import BatchedKVCache, make_batch_cache
from rung.models.base import CausalModel

STEP_ROWS = 512  # tokens that the step in C reads together, but for a longer window


class ModelStepper:
    """A model that reads texts in slots; with `keeps_states` it returns hidden states too."""

    def __init__(self, model: CausalModel, keeps_states: bool = False) -> None:
        self.model, self.keeps_states = model, keeps_states
        self.vocab_size = model.config.vocab_size
        self.texts: dict[int, list[int]] = {}
        self.cache = make_batch_cache(model)
        self.native = self.cache.native if isinstance(self.cache, BatchedKVCache) else None
        self.states: list[Tensor] = []  # the head's input in the model's last forward pass

    def reset(self, slot: int) -> None:
        """Empty a slot."""
        self.texts[slot] = []

    @torch.no_grad()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Append a token to each text: return logits (N, V), and hidden states (N, D) if kept."""
        pieces: list[list[int]] = []
        anew: dict[int, int] = {}  # slots whose pieces begin a window at token 0 of it
        for slot, token in zip(slots, tokens, strict=True):
            text = self.texts[slot]
            text.append(token)
            if (start := self._find_window(len(text) - 1)) is None:
                pieces.append([token])
            else:
                pieces.append(text[start:])
                anew[slot] = 0
        read = self._read_natively if self.native else self._read
        return read(slots, pieces, anew)

    def _read_natively(
        self, slots: Sequence[int], pieces: Sequence[list[int]], anew: Mapping[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Read a piece of each text in C, up to `STEP_ROWS` tokens together."""
        assert isinstance(self.cache, BatchedKVCache) and self.native is not None
        logits, states = torch.empty(len(slots), self.vocab_size), []
        begin = count = 0
        for end, piece in enumerate([*pieces, []]):
            if end == len(pieces) or (count and count + len(piece) > STEP_ROWS):
                logits[begin:end] = self.cache.extend(slots[begin:end], pieces[begin:end], anew)
                if self.keeps_states:
                    assert self.native.buffers is not None
                    states.append(self.native.buffers.y[begin - end :].clone())
                begin, count = end, 0
            count += len(piece)
        return logits, torch.cat(states) if states else None

    def _read(
        self, slots: Sequence[int], pieces: Sequence[list[int]], anew: Mapping[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Read a piece of each text by the model's forward pass."""
        logits = torch.empty(len(slots), self.vocab_size)
        states: dict[int, Tensor] = {}
        going = [row for row, slot in enumerate(slots) if slot not in anew]
        for row in (row for row, slot in enumerate(slots) if slot in anew):
            with self._watch_head():
                logits[row] = self._prefill(slots[row], pieces[row])[-1]
            states[row] = self._take_states(1)[-1] if self.keeps_states else logits[row]
        # States of different shapes, or of another tool, are decoded in several passes: to know
        # whose hidden state is whose, one text after another.
        alone = self.keeps_states and not isinstance(self.cache, BatchedKVCache)
        for rows in [[row] for row in going] if alone else [going] if going else []:
            with self._watch_head():
                found = self.cache.decode(
                    [slots[row] for row in rows], torch.tensor([pieces[row][0] for row in rows])
                )
            logits[rows] = found.float()
            if self.keeps_states:
                states |= dict(zip(rows, self._take_states(len(rows)), strict=True))
        if not self.keeps_states:
            return logits, None
        return logits, torch.stack([states[row] for row in range(len(slots))])

    def _find_window(self, place: int) -> int | None:
        """Return where the window begins that is to be read for the token at `place`, if one is.

        The ruler's windows after the first are scored in their last stride. Where a text ends
        within a window, the ruler knows it and begins that window sooner; nothing here can know.
        """
        window = self.model.context_length
        if place == 0:
            return 0
        if window is None or place < window:
            return None
        stride = choose_stride(window)
        return None if (place - window) % stride else place + stride - window

    def _prefill(self, slot: int, ids: list[int]) -> Tensor:
        output = self.model(
            torch.tensor([ids]),
            past_key_values=self.cache.make_state(len(ids)),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.store(slot, output.past_key_values)
        return output.logits[:, -1]

    @contextmanager
    def _watch_head(self) -> Iterator[None]:
        """Keep what the head is applied to in the block, where hidden states are asked for.

        The hook does not stay: a model with hooks is none that `step.c` knows.
        """
        hook = None
        if self.keeps_states:
            hook = self.model.get_output_embeddings().register_forward_pre_hook(
                lambda _, inputs: self.states.append(inputs[0][:, -1])
            )
        try:
            yield
        finally:
            if hook:
                hook.remove()

    def _take_states(self, count: int) -> Tensor:
        """Return the hidden states (count, D) that the last logits were computed from."""
        taken = self.states[-1]
        self.states.clear()
        return taken[-count:].clone()
