"""Documents to one long row of token ids on disk, and that row in blocks or in streams for training.

The row is memory-mapped, 16 or 32 bits an id, and kept under the fingerprints of corpus and tokenizer.
Every token but the first is predicted exactly once an epoch: blocks, or the stretches of a stream, follow
one another with nothing dropped and nothing repeated.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset

IGNORED = -100  # the label that no loss counts


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A split as token ids: `tokens` (N,) holds BOS, text, EOS of every document; `starts` (documents,)."""

    tokens: numpy.ndarray
    starts: numpy.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def pack(documents: Iterable[list[int]], *, key: str, vocab_size: int, folder: Path) -> Packed:
    """The documents' ids as one row, read from `folder` when it was made before under the same `key`.

    The key must change whenever the ids do: fingerprints of corpus and tokenizer, and a split.
    """
    path = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    packed = _read(path)
    if packed is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(documents, vocab_size, path)
        packed = _read(path)
    assert packed is not None
    return packed


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """A packed row cut into blocks of `length` tokens, each with its targets; fetched a batch at a time.

    The targets are the row one token on (`shift_labels`); the last block is padded, its padding ignored.
    """

    def __init__(self, packed: Packed, length: int, pad: int) -> None:
        self.tokens = packed.tokens
        self.length = length
        self.pad = pad

    def __len__(self) -> int:
        return max(1, -(-(len(self.tokens) - 1) // self.length))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `shift_labels`, each (B, T)."""
        if beyond := [index for index in indices if not 0 <= index < len(self)]:
            raise IndexError(f"no block {beyond[0]}: there are {len(self)}")
        spans = [(index * self.length, (index + 1) * self.length) for index in indices]
        return _read_spans(self.tokens, spans, self.length, self.pad)


class Streams(Dataset[dict[str, Any]]):
    """A packed row cut into `count` streams side by side, read on together in stretches of `length` tokens.

    Item `stretch * count + stream`, so that batches taken in order go on with the streams where they were left
    (Mikolov et al. 2010; Zaremba et al. 2014, section 4.1). Each stream ends where the next one begins; its last
    stretch is padded, the padding ignored.
    """

    def __init__(self, packed: Packed, length: int, pad: int, count: int) -> None:
        self.tokens = packed.tokens
        self.length = length
        self.pad = pad
        self.count = count
        self.stream_length = max(1, -(-(len(self.tokens) - 1) // count))  # tokens that a stream predicts

    def __len__(self) -> int:
        return self.count * -(-self.stream_length // self.length)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[0] if torch.is_tensor(value) else value for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """A batch as `Blocks` gives it, and which `stretch` of which streams it is, the first `stream` named."""
        if beyond := [index for index in indices if not 0 <= index < len(self)]:
            raise IndexError(f"no stretch {beyond[0]}: there are {len(self)}")
        spans = []
        for stretch, stream in (divmod(index, self.count) for index in indices):
            end = (stream + 1) * self.stream_length
            start = stream * self.stream_length + stretch * self.length
            spans.append((start, min(start + self.length, end)))
        stretch, stream = divmod(indices[0], self.count)
        return {**_read_spans(self.tokens, spans, self.length, self.pad), "stretch": stretch, "stream": stream}


def keep_batch(batch: Any) -> Any:
    """The collator for `Blocks` and `Streams`: their batches come whole."""
    return batch


def _read_spans(tokens: numpy.ndarray, spans: list[tuple[int, int]], length: int, pad: int) -> dict[str, torch.Tensor]:
    """Inputs (B, T) from the tokens of each span, and as targets the token after each."""
    rows = numpy.full((len(spans), length + 1), IGNORED, dtype=numpy.int64)
    for row, (start, end) in zip(rows, spans, strict=True):
        window = tokens[start : end + 1]
        row[: len(window)] = window
    inputs = torch.from_numpy(numpy.where(rows[:, :-1] == IGNORED, pad, rows[:, :-1]))
    targets = torch.from_numpy(rows[:, 1:].copy())
    return {"input_ids": inputs, "labels": targets, "shift_labels": targets}


def _read(path: Path) -> Packed | None:
    """What `_write` wrote; None where it is not there, or not whole."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        size, dtype = facts["tokens"], numpy.dtype(facts["dtype"])
        if path.with_suffix(".bin").stat().st_size != size * dtype.itemsize:
            return None
        starts = numpy.load(path.with_suffix(".npy"))
    except (OSError, ValueError, EOFError):  # a file is missing, or was cut short when the machine went down
        return None
    tokens = numpy.memmap(path.with_suffix(".bin"), dtype=dtype, mode="r") if size else numpy.empty(0, dtype)
    return Packed(tokens=tokens, starts=starts)


def _write(documents: Iterable[list[int]], vocab_size: int, path: Path) -> None:
    """Write `path`.bin, .npy and, last, .json: the first two count only once the third is there."""
    dtype = numpy.dtype(numpy.uint16 if vocab_size <= 2**16 else numpy.uint32)
    beside = [path.with_name(f".{path.name}.{os.getpid()}{suffix}") for suffix in (".bin", ".npy", ".json")]
    starts, count = [], 0
    try:
        with beside[0].open("wb") as file:
            for document in documents:
                starts.append(count)
                count += len(document)
                file.write(numpy.array(document, dtype=dtype).tobytes())
        numpy.save(beside[1], numpy.array(starts, dtype=numpy.int64))
        beside[2].write_text(json.dumps({"tokens": count, "dtype": dtype.name}), encoding="utf-8")
        for source in beside:
            source.replace(path.with_suffix(source.suffix))
    finally:
        for source in beside:
            source.unlink(missing_ok=True)
