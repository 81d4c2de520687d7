"""Pack documents into one long row of token ids on disk, and cut that row for training.

The row is memory-mapped, 16 or 32 bits an id, and kept under the fingerprints of corpus and
tokenizer. It is written in the memory of a few documents, and continued after an interruption.
Every token but the first is predicted exactly once an epoch: blocks, or the segments of a stream,
follow one another with nothing dropped and nothing repeated.
"""

import functools
import hashlib
import json
import math
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
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer import encode_batches, required_vocab_size
from rung.errors import RunError
from rung.files import locked, sync_open_file, write_atomically
from rung.progress import OnProgress, ProgressMeter, ignore_progress

IGNORE_INDEX = -100  # the label that no loss counts
SYNC_SECONDS = 10.0  # between two times that the files are synced while they are written
PACKED_LAYOUT = 2  # to be raised whenever the files are laid out differently
STARTS_DTYPE = numpy.dtype(numpy.int64)

# Ids of whole documents, the length of each document, and the state to continue from after them:
# any JSON value, or None where reading cannot be continued.
TokenBatch = tuple[NDArray[numpy.integer], NDArray[numpy.integer], Any]
TokenReader = Callable[[Any], Iterable[TokenBatch]]
TextReader = Callable[[Any], Iterable[tuple[list[str], Any]]]


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """A split as token ids: `tokens` (N,) holds BOS, text, EOS of each document.

    `starts` (documents,) are the positions of BOS. `state` is that after the last document.
    """

    tokens: numpy.ndarray
    starts: numpy.ndarray
    state: Any = None

    def __len__(self) -> int:
        return len(self.tokens)


def pack(
    read: TokenReader,
    *,
    key: str,
    vocab_size: int,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    total: int | None = None,
) -> PackedTokens:
    """Write the documents' ids as one row into `folder`, or reuse that of the same `key`.

    `read(state)` gives what comes after `state`, everything for None. The key must change whenever
    the ids do: fingerprints of corpus and tokenizer, and a split. Progress counts documents, of
    `total` if that is known. Raises `RunError` when the disk is full.
    """
    path = _path_of(key, folder)
    packed = _read(path)
    if packed is None:
        with locked(path):  # a second process waits, and finds the row written
            packed = _read(path)
            if packed is None:
                try:
                    meter = ProgressMeter(on_progress, "tokenizing", total)
                    _write(read, _choose_dtype(vocab_size), path, meter)
                except OSError as error:
                    raise RunError(
                        f"{folder} could not be written to ({error.strerror or error}): make room "
                        "there, and the same command goes on from what is packed"
                    ) from error
                packed = _read(path)
    assert packed is not None
    return packed


def pack_texts(
    read: TextReader,
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: str,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    total: int | None = None,
) -> PackedTokens:
    """Tokenize documents and `pack` them; `read(state)` gives the texts after `state`."""
    return pack(
        lambda state: encode_batches(read(state), tokenizer),
        key=key,
        vocab_size=required_vocab_size(tokenizer),
        folder=folder,
        on_progress=on_progress,
        total=total,
    )


def find_packed(key: str, folder: Path) -> PackedTokens | None:
    """Find the row of this key that `pack` wrote into `folder`; None where there is none."""
    return _read(_path_of(key, folder))


class TokenDataset(Protocol):
    """Rows of up to `length` tokens with their targets, which training fetches in batches."""

    length: int

    def __len__(self) -> int: ...

    def count_tokens(self) -> int:
        """Count the tokens of all rows, without padding."""
        ...

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Return a batch: `input_ids` and `shift_labels`, each (B, T), and other model inputs."""
        ...


class BlockDataset(Dataset[dict[str, torch.Tensor]]):
    """Blocks of `length` tokens of a packed row, each with its targets.

    The targets (`shift_labels`) are the inputs moved by one token. The last block is padded, and
    its padding ignored by the loss.

    With a `seed` there are blocks of epochs without end: item `epoch * len(self) + block`. After
    the first epoch the row is a ring that each of them cuts elsewhere, so that a token is not met
    at the same place of a block, behind the same tokens, again and again.
    """

    def __init__(
        self, packed: PackedTokens, length: int, pad: int, seed: int | None = None
    ) -> None:
        self.tokens = packed.tokens
        self.starts = packed.starts
        self.length = length
        self.pad = pad
        self.seed = seed

    def __len__(self) -> int:
        return max(1, -(-(len(self.tokens) - 1) // self.length))

    def count_tokens(self) -> int:
        return max(1, len(self.tokens) - 1)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return a batch: `input_ids` and `shift_labels`, each (B, T)."""
        end = len(self) if self.seed is None else math.inf
        if beyond := [index for index in indices if not 0 <= index < end]:
            raise IndexError(f"no block {beyond[0]}: there are {len(self)}")
        return _make_batch(map(self._read_window, indices), self.length, self.pad)

    def _read_window(self, index: int) -> NDArray[numpy.integer]:
        """Read a block's tokens, and the one after it."""
        (epoch, block), end = divmod(index, len(self)), len(self.tokens)
        cut = 0 if self.seed is None else _choose_cut(self.seed, epoch, end)
        start = cut + block * self.length
        stop = min(start + self.length + 1, cut + end)
        if stop <= end:
            return self.tokens[start:stop]
        if start >= end:
            return self.tokens[start - end : stop - end]
        return numpy.concatenate([self.tokens[start:], self.tokens[: stop - end]])


@functools.lru_cache(maxsize=4)
def _choose_cut(seed: int, epoch: int, tokens: int) -> int:
    """Choose where an epoch cuts the ring of so many tokens: the first one where it ends."""
    if epoch == 0 or tokens == 0:
        return 0
    drawn = numpy.random.SeedSequence((seed, epoch), spawn_key=(0,)).generate_state(1, numpy.uint64)
    return int(drawn[0]) % tokens


class TBPTTDataset(Dataset[dict[str, Any]]):
    """A packed row as `count` parallel streams, in segments of `length` tokens.

    Item `segment * count + stream`, so that batches taken in order continue the streams (Mikolov
    et al. 2010; Zaremba et al. 2014, section 4.1). Each stream ends where the next one begins; its
    last segment is padded, and the padding ignored by the loss.
    """

    def __init__(self, packed: PackedTokens, length: int, pad: int, count: int) -> None:
        self.tokens = packed.tokens
        self.length = length
        self.pad = pad
        self.count = count
        # How many tokens a stream predicts.
        self.stream_length = max(1, -(-(len(self.tokens) - 1) // count))

    def __len__(self) -> int:
        return self.count * -(-self.stream_length // self.length)

    def count_tokens(self) -> int:
        return max(1, len(self.tokens) - 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            key: value[0] if torch.is_tensor(value) else value
            for key, value in self.__getitems__([index]).items()
        }

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Return a batch as `BlockDataset` does, with its `segment` and its first `stream`."""
        if beyond := [index for index in indices if not 0 <= index < len(self)]:
            raise IndexError(f"no segment {beyond[0]}: there are {len(self)}")
        windows = []
        for segment, stream in (divmod(index, self.count) for index in indices):
            end = (stream + 1) * self.stream_length
            start = stream * self.stream_length + segment * self.length
            windows.append(self.tokens[start : min(start + self.length, end) + 1])
        segment, stream = divmod(indices[0], self.count)
        return {
            **_make_batch(windows, self.length, self.pad),
            "segment": segment,
            "stream": stream,
        }


def identity_collator(batch: Any) -> Any:
    """Return the batch: the data sets here fetch whole batches, which need no collating."""
    return batch


def _make_batch(
    windows: Iterable[NDArray[numpy.integer]], length: int, pad: int
) -> dict[str, torch.Tensor]:
    """Return inputs (B, T) from all tokens of each window but the last, and the next as targets."""
    read = list(windows)
    rows = numpy.full((len(read), length + 1), IGNORE_INDEX, dtype=numpy.int64)
    for row, window in zip(rows, read, strict=True):
        row[: len(window)] = window
    inputs = torch.from_numpy(numpy.where(rows[:, :-1] == IGNORE_INDEX, pad, rows[:, :-1]))
    targets = torch.from_numpy(rows[:, 1:].copy())
    return {"input_ids": inputs, "labels": targets, "shift_labels": targets}


@dataclass
class _PackState:
    """How much of the row is on disk, and the state after it."""

    tokens: int = 0
    documents: int = 0
    state: Any = None

    def sizes(self, dtype: numpy.dtype) -> dict[str, int]:
        """Return the bytes that each file has at least, by suffix."""
        return {
            ".bin": self.tokens * dtype.itemsize,
            ".starts": self.documents * STARTS_DTYPE.itemsize,
        }


def _path_of(key: str, folder: Path) -> Path:
    return folder / hashlib.sha256(f"{PACKED_LAYOUT} {key}".encode()).hexdigest()[:16]


def _choose_dtype(vocab_size: int) -> numpy.dtype:
    return numpy.dtype(numpy.uint16 if vocab_size <= 2**16 else numpy.uint32)


def _read(path: Path) -> PackedTokens | None:
    """Return what `_write` wrote; None where it is missing or incomplete."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        dtype, progress = numpy.dtype(facts.pop("dtype")), _PackState(**facts)
        sizes = progress.sizes(dtype)
        if any(path.with_suffix(suffix).stat().st_size != size for suffix, size in sizes.items()):
            return None
    # Missing, or cut short when the machine went down.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    tokens = _map(path.with_suffix(".bin"), dtype, progress.tokens)
    starts = _map(path.with_suffix(".starts"), STARTS_DTYPE, progress.documents)
    return PackedTokens(tokens=tokens, starts=starts, state=progress.state)


def _map(path: Path, dtype: numpy.dtype, size: int) -> numpy.ndarray:
    return (
        numpy.memmap(path, dtype=dtype, mode="r", shape=(size,)) if size else numpy.empty(0, dtype)
    )


def _write(read: TokenReader, dtype: numpy.dtype, path: Path, meter: ProgressMeter) -> None:
    """Write `path`.bin and .starts, continuing an interrupted try where `read` gives states.

    They are complete once .json is there; until then .part says how far they go.
    """
    path.with_suffix(".json").unlink(missing_ok=True)
    progress = _find_partial(path, dtype)
    with ExitStack() as stack:
        files = [
            stack.enter_context(_open_at(path.with_suffix(s), size))
            for s, size in progress.sizes(dtype).items()
        ]
        kept = time.monotonic()
        meter.step(0, items=progress.documents)
        try:
            for ids, lengths, state in read(progress.state):
                _append(files, ids, lengths, progress.tokens, dtype)
                progress = _PackState(
                    progress.tokens + len(ids), progress.documents + len(lengths), state
                )
                meter.step(len(ids), items=len(lengths))
                if state is not None and time.monotonic() - kept > SYNC_SECONDS:
                    _sync(files, progress, dtype, path.with_suffix(".part"))
                    kept = time.monotonic()
        except BaseException:
            if progress.state is not None:
                _sync(files, progress, dtype, path.with_suffix(".part"))
            raise
        _sync(files, progress, dtype, path.with_suffix(".json"))
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
    files[1].write(
        (at + numpy.cumsum(lengths, dtype=STARTS_DTYPE) - lengths).astype(STARTS_DTYPE).tobytes()
    )


def _find_partial(path: Path, dtype: numpy.dtype) -> _PackState:
    """Return how far an earlier try came; nothing where less is on disk than it says."""
    try:
        facts = json.loads(path.with_suffix(".part").read_text(encoding="utf-8"))
        same, progress = facts.pop("dtype") == dtype.name, _PackState(**facts)
        sizes = progress.sizes(dtype)
        if same and all(
            path.with_suffix(suffix).stat().st_size >= size for suffix, size in sizes.items()
        ):
            return progress
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path.with_suffix(".part").unlink(missing_ok=True)
    return _PackState()


def _open_at(path: Path, size: int) -> IO[bytes]:
    """Open the file for appending, truncated to `size`."""
    file = path.open("ab")
    file.truncate(size)
    return file


def _sync(files: list[IO[bytes]], progress: _PackState, dtype: numpy.dtype, path: Path) -> None:
    """Sync the files, and then write to `path` how far they go."""
    for file in files:
        sync_open_file(file)
    write_atomically(path, json.dumps({"dtype": dtype.name, **vars(progress)}))
