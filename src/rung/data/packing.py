"""Documents to one long row of token ids on disk, and that row in blocks or in streams for
training.

The row is memory-mapped, 16 or 32 bits an id, and kept under the fingerprints of corpus and
tokenizer. It is written in the memory of a few documents; what stands when the writing stops is
gone on from the next time. Every token but the first is predicted exactly once an epoch: blocks, or
the stretches of a stream, follow one another with nothing dropped and nothing repeated.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from rung.errors import RunError
from rung.files import locked, write_atomically
from rung.progress import OnProgress, ProgressMeter, ignore_progress

IGNORE_INDEX = -100  # the label that no loss counts
KEEP_SECONDS = 10.0  # how often what is packed is made sure of
LAYOUT = 2  # one more whenever the files are laid out differently: what was packed before is left
STARTS = numpy.dtype(numpy.int64)

# Ids of whole documents, how many each document has, and the state from which to read what comes
# after them (anything that JSON can hold; None where there is none).
Chunk = tuple[NDArray[numpy.integer], NDArray[numpy.integer], Any]
Read = Callable[[Any], Iterable[Chunk]]


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """A split as token ids: `tokens` (N,) holds BOS, text, EOS of every document; `starts`
    (documents,).

    `state` is what was read with the last of them.
    """

    tokens: numpy.ndarray
    starts: numpy.ndarray
    state: Any = None

    def __len__(self) -> int:
        return len(self.tokens)


def pack(
    read: Read,
    *,
    key: str,
    vocab_size: int,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
) -> PackedTokens:
    """The documents' ids as one row, read from `folder` when it was made before under the same
    `key`.

    `read(state)` gives what comes after `state`, everything for None. The key must change whenever
    the ids do: fingerprints of corpus and tokenizer, and a split. Progress counts the
    documents. Raises `RunError` when the disk is full.
    """
    path = folder / hashlib.sha256(f"{LAYOUT} {key}".encode()).hexdigest()[:16]
    packed = _read(path)
    if packed is None:
        with locked(path):  # who comes second waits, and finds it made
            packed = _read(path)
            if packed is None:
                try:
                    _write(read, _choose_dtype(vocab_size), path, on_progress)
                except OSError as error:
                    raise RunError(
                        f"{folder} could not be written to ({error.strerror or error}): make room "
                        f"there, and the same "
                        "command goes on from what is packed"
                    ) from error
                packed = _read(path)
    assert packed is not None
    return packed


class TokenDataset(Protocol):
    """What training reads: rows of up to `length` tokens with their targets, fetched a batch at a
    time.
    """

    length: int

    def __len__(self) -> int: ...

    def count_tokens(self) -> int:
        """Tokens of all rows together, padding left out."""
        ...

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """A batch: `input_ids` and `shift_labels`, each (B, T), and what else the model is
        given.
        """
        ...


class BlockDataset(Dataset[dict[str, torch.Tensor]]):
    """A packed row cut into blocks of `length` tokens, each with its targets; fetched a batch at a
    time.

    The targets are the row one token on (`shift_labels`); the last block is padded, its padding
    ignored.
    """

    def __init__(self, packed: PackedTokens, length: int, pad: int) -> None:
        self.tokens = packed.tokens
        self.length = length
        self.pad = pad

    def __len__(self) -> int:
        return max(1, -(-(len(self.tokens) - 1) // self.length))

    def count_tokens(self) -> int:
        """Tokens of all blocks together, padding left out."""
        return max(1, len(self.tokens) - 1)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `shift_labels`, each (B, T)."""
        if beyond := [index for index in indices if not 0 <= index < len(self)]:
            raise IndexError(f"no block {beyond[0]}: there are {len(self)}")
        spans = [(index * self.length, (index + 1) * self.length) for index in indices]
        return _read_spans(self.tokens, spans, self.length, self.pad)


class TBPTTDataset(Dataset[dict[str, Any]]):
    """A packed row cut into `count` streams side by side, read on together in stretches of `length`
    tokens.

    Item `stretch * count + stream`, so that batches taken in order go on with the streams where
    they were left (Mikolov et al. 2010; Zaremba et al. 2014, section 4.1). Each stream ends where
    the next one begins; its last stretch is padded, the padding ignored.
    """

    def __init__(self, packed: PackedTokens, length: int, pad: int, count: int) -> None:
        self.tokens = packed.tokens
        self.length = length
        self.pad = pad
        self.count = count
        self.stream_length = max(
            1, -(-(len(self.tokens) - 1) // count)
        )  # tokens that a stream predicts

    def __len__(self) -> int:
        return self.count * -(-self.stream_length // self.length)

    def count_tokens(self) -> int:
        """Tokens of all stretches together, padding left out."""
        return max(1, len(self.tokens) - 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            key: value[0] if torch.is_tensor(value) else value
            for key, value in self.__getitems__([index]).items()
        }

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """A batch as `BlockDataset` gives it, and which `stretch` of which streams it is, the first
        `stream` named.
        """
        if beyond := [index for index in indices if not 0 <= index < len(self)]:
            raise IndexError(f"no stretch {beyond[0]}: there are {len(self)}")
        spans = []
        for stretch, stream in (divmod(index, self.count) for index in indices):
            end = (stream + 1) * self.stream_length
            start = stream * self.stream_length + stretch * self.length
            spans.append((start, min(start + self.length, end)))
        stretch, stream = divmod(indices[0], self.count)
        return {
            **_read_spans(self.tokens, spans, self.length, self.pad),
            "stretch": stretch,
            "stream": stream,
        }


def identity_collator(batch: Any) -> Any:
    """The collator for `BlockDataset` and `TBPTTDataset`: their batches come whole."""
    return batch


def _read_spans(
    tokens: numpy.ndarray, spans: list[tuple[int, int]], length: int, pad: int
) -> dict[str, torch.Tensor]:
    """Inputs (B, T) from the tokens of each span, and as targets the token after each."""
    rows = numpy.full((len(spans), length + 1), IGNORE_INDEX, dtype=numpy.int64)
    for row, (start, end) in zip(rows, spans, strict=True):
        window = tokens[start : end + 1]
        row[: len(window)] = window
    inputs = torch.from_numpy(numpy.where(rows[:, :-1] == IGNORE_INDEX, pad, rows[:, :-1]))
    targets = torch.from_numpy(rows[:, 1:].copy())
    return {"input_ids": inputs, "labels": targets, "shift_labels": targets}


@dataclass
class _Progress:
    """How much of the row is on disk, and the state that goes on after it."""

    tokens: int = 0
    documents: int = 0
    state: Any = None

    def sizes(self, dtype: numpy.dtype) -> dict[str, int]:
        """The files by suffix, and the bytes that they have at least."""
        return {".bin": self.tokens * dtype.itemsize, ".starts": self.documents * STARTS.itemsize}


def _choose_dtype(vocab_size: int) -> numpy.dtype:
    return numpy.dtype(numpy.uint16 if vocab_size <= 2**16 else numpy.uint32)


def _read(path: Path) -> PackedTokens | None:
    """What `_write` wrote; None where it is not there, or not whole."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        dtype, progress = numpy.dtype(facts.pop("dtype")), _Progress(**facts)
        sizes = progress.sizes(dtype)
        if any(path.with_suffix(suffix).stat().st_size != size for suffix, size in sizes.items()):
            return None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # missing, or cut short when the machine went down
        return None
    tokens = _map(path.with_suffix(".bin"), dtype, progress.tokens)
    starts = _map(path.with_suffix(".starts"), STARTS, progress.documents)
    return PackedTokens(tokens=tokens, starts=starts, state=progress.state)


def _map(path: Path, dtype: numpy.dtype, size: int) -> numpy.ndarray:
    return (
        numpy.memmap(path, dtype=dtype, mode="r", shape=(size,)) if size else numpy.empty(0, dtype)
    )


def _write(read: Read, dtype: numpy.dtype, path: Path, on_progress: OnProgress) -> None:
    """Write `path`.bin and .starts, which count only once .json is there; .part says how far they
    go meanwhile.

    Goes on from what stands. On an error what was written is kept, where `read` gives states.
    """
    path.with_suffix(".json").unlink(missing_ok=True)
    progress = _find_progress(path, dtype)
    with ExitStack() as stack:
        files = [
            stack.enter_context(_open_at(path.with_suffix(s), size))
            for s, size in progress.sizes(dtype).items()
        ]
        kept = time.monotonic()
        meter = ProgressMeter(on_progress, "tokenizing")
        meter.step(0, items=progress.documents)
        try:
            for ids, lengths, state in read(progress.state):
                _append(files, ids, lengths, progress.tokens, dtype)
                progress = _Progress(
                    progress.tokens + len(ids), progress.documents + len(lengths), state
                )
                meter.step(len(ids), items=len(lengths))
                if state is not None and time.monotonic() - kept > KEEP_SECONDS:
                    _keep(files, progress, dtype, path.with_suffix(".part"))
                    kept = time.monotonic()
        except BaseException:
            if progress.state is not None:
                _keep(files, progress, dtype, path.with_suffix(".part"))
            raise
        _keep(files, progress, dtype, path.with_suffix(".json"))
    path.with_suffix(".part").unlink(missing_ok=True)


def _append(
    files: list[IO[bytes]],
    ids: NDArray[numpy.integer],
    lengths: NDArray[numpy.integer],
    at: int,
    dtype: numpy.dtype,
) -> None:
    if len(ids) and ids.max() > numpy.iinfo(dtype).max:
        raise OverflowError(f"token {ids.max()} does not fit in {dtype}")
    files[0].write(ids.astype(dtype).tobytes())
    files[1].write((at + numpy.cumsum(lengths, dtype=STARTS) - lengths).astype(STARTS).tobytes())


def _find_progress(path: Path, dtype: numpy.dtype) -> _Progress:
    """How far an earlier try came; the beginning, where less is on disk than it says."""
    try:
        facts = json.loads(path.with_suffix(".part").read_text(encoding="utf-8"))
        same, progress = facts.pop("dtype") == dtype.name, _Progress(**facts)
        sizes = progress.sizes(dtype)
        if same and all(
            path.with_suffix(suffix).stat().st_size >= size for suffix, size in sizes.items()
        ):
            return progress
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path.with_suffix(".part").unlink(missing_ok=True)
    return _Progress()


def _open_at(path: Path, size: int) -> IO[bytes]:
    """The file, cut to `size`, for writing on."""
    file = path.open("ab")
    file.truncate(size)
    return file


def _keep(files: list[IO[bytes]], progress: _Progress, dtype: numpy.dtype, path: Path) -> None:
    """Have the disk hold what was written, and then `path` say so."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    write_atomically(path, json.dumps({"dtype": dtype.name, **vars(progress)}))
