"""Pack conversations into rows to train on.

The loss counts the assistant's tokens only. Where attention can keep them apart, several
conversations share a row: each has positions from zero, and its queries see only its own keys
(Krell et al. 2021, section 3.2).
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from rung.chat.template import EncodedConversation
from rung.data.corpus import Corpus
from rung.data.packing import IGNORE_INDEX
from rung.data.tokenizer import encode_documents

logger = logging.getLogger(__name__)

BYTES_PER_TOKEN = 3  # roughly


class ConversationDataset(Dataset[dict[str, Any]]):
    """Rows of up to `length` tokens with their targets, fetched a batch at a time.

    A longer conversation is cut at its end, and left out where no answer begins before. With
    `packed` several conversations share a row, and a batch has `position_ids` and an
    `attention_mask` (B, 1, T, T) too.
    """

    def __init__(
        self, conversations: Sequence[EncodedConversation], length: int, pad: int, *, packed: bool
    ) -> None:
        self.length = length
        self.pad = pad
        self.packed = packed
        kept = [c for c in conversations if any(c.assistant_mask[1 : length + 1])]
        self.left_out = len(conversations) - len(kept)
        self.cut = sum(len(c.ids) > length + 1 for c in kept)
        if self.left_out:
            logger.warning(
                "%d conversations are left out: no answer begins within %d tokens",
                self.left_out,
                length,
            )
        if self.cut:
            logger.warning(
                "%d conversations are longer than %d tokens, and are cut off there",
                self.cut,
                length,
            )
        self.pieces = [_to_arrays(c, length) for c in kept]
        sizes = [len(inputs) for inputs, _ in self.pieces]
        self.rows = pack_best_fit(sizes, length) if packed else [[i] for i in range(len(sizes))]

    def __len__(self) -> int:
        return len(self.rows)

    def count_tokens(self) -> int:
        """Count the tokens of all rows, without padding."""
        return sum(len(inputs) for inputs, _ in self.pieces)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Return a batch: `input_ids` and `shift_labels` (B, T), and the packed rows' masks."""
        rows = [self.rows[index] for index in indices]
        width = self.length if self.packed else max(len(self.pieces[row[0]][0]) for row in rows)
        ids = numpy.full((len(rows), width), self.pad, dtype=numpy.int64)
        targets = numpy.full((len(rows), width), IGNORE_INDEX, dtype=numpy.int64)
        places = numpy.zeros((len(rows), width), dtype=numpy.int64)
        # The number of the conversation in its row, from 1 on; 0 for padding.
        numbers = numpy.zeros((len(rows), width), dtype=numpy.int64)
        for at, row in enumerate(rows):
            start = 0
            for number, piece in enumerate(row, 1):
                inputs, outputs = self.pieces[piece]
                end = start + len(inputs)
                ids[at, start:end], targets[at, start:end] = inputs, outputs
                places[at, start:end], numbers[at, start:end] = numpy.arange(len(inputs)), number
                start = end
        labels = torch.from_numpy(targets)
        batch = {"input_ids": torch.from_numpy(ids), "labels": labels, "shift_labels": labels}
        if self.packed:
            own = numpy.tril(numbers[:, :, None] == numbers[:, None, :])[:, None]
            batch |= {
                "position_ids": torch.from_numpy(places),
                "attention_mask": torch.from_numpy(own),
            }
        return batch


def sample_replay(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int, tokens: float
) -> list[EncodedConversation]:
    """Sample about so many tokens of the base's own training text, evenly, as rows of `length`.

    Training on them too keeps the model from forgetting (Robins 1995; for language models, Scialom
    et al. 2022).
    """
    stride = max(1, round(corpus.bytes["train"] / (BYTES_PER_TOKEN * max(tokens, 1))))
    documents = encode_documents(corpus.sample_train(stride), tokenizer)
    rows = [ids[at : at + length + 1] for ids in documents for at in range(0, len(ids) - 1, length)]
    return [EncodedConversation(row, [False] + [True] * (len(row) - 1)) for row in rows]


def pack_best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Pack pieces into rows by best fit decreasing; return the piece indices of each row."""
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by their free tokens
    for piece in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[piece]
        room = next((r for r in range(size, length + 1) if with_room[r]), None)
        row = with_room[room].pop() if room is not None else len(rows)
        if room is None:
            rows.append([])
        rows[row].append(piece)
        with_room[(length if room is None else room) - size].append(row)
    return rows


def _to_arrays(
    conversation: EncodedConversation, length: int
) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
    """Return inputs, and as targets the next token where the assistant generates it."""
    ids, said = (
        numpy.array(column[: length + 1])
        for column in (conversation.ids, conversation.assistant_mask)
    )
    return ids[:-1], numpy.where(said[1:], ids[1:], IGNORE_INDEX)
