"""Tokens on disk and in blocks: each predicted once, none twice, and no half-written row is ever
read.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rung.data import packing
from rung.data.packing import (
    IGNORE_INDEX,
    BlockDataset,
    PackedTokens,
    TBPTTDataset,
    identity_collator,
    pack,
)
from rung.data.tokenizer import encode_documents
from rung.errors import RunError
from tests.conftest import SENTENCES, examples

PAD = 9
DOCUMENTS = [[0, 5, 6, 1], [0, 1], [0, 7, 7, 7, 1]]
ROW = list(itertools.chain(*DOCUMENTS))
IDS = st.integers(0, 2**16 - 1)


def read_each(documents, started=None):
    """A reader that gives one document at a time, its state how many there were; `started` hears
    where it begins.
    """

    def read(state):
        if started is not None:
            started.append(state)
        for number, document in enumerate(
            itertools.islice(documents, state, None), 1 + (state or 0)
        ):
            yield numpy.array(document, dtype=numpy.int64), numpy.array([len(document)]), number

    return read


def make(folder, documents=DOCUMENTS, key="a", vocab_size=100):
    return pack(read_each(documents), key=key, vocab_size=vocab_size, folder=folder)


def breaking(documents, after, error=KeyboardInterrupt):
    yield from itertools.islice(documents, after)
    raise error


def row(tokens):
    return PackedTokens(tokens=numpy.array(tokens, dtype=numpy.uint16), starts=numpy.array([0]))


def never():
    pytest.fail("packed again")
    yield


@settings(max_examples=examples(200), deadline=None)
@given(tokens=st.lists(IDS, min_size=2, max_size=70), length=st.integers(1, 20))
@example(tokens=list(range(17)), length=16)  # the last block is just full
@example(tokens=list(range(18)), length=16)  # and has one token over
def test_blocks_predict_every_token_but_the_first_once(tokens, length):
    blocks = BlockDataset(row(tokens), length, PAD)
    inputs, targets = [], []
    for block in itertools.islice(blocks, len(tokens)):
        assert block["input_ids"].shape == block["shift_labels"].shape == (length,)
        counted = block["shift_labels"] != IGNORE_INDEX
        inputs += block["input_ids"][counted].tolist()
        targets += block["shift_labels"][counted].tolist()
    assert targets == tokens[1:]
    assert inputs == tokens[:-1]
    assert len(blocks) == -(-(len(tokens) - 1) // length)


def test_only_the_end_of_the_last_block_is_padded():
    first, last = itertools.islice(BlockDataset(row([3, 4, 5, 6, 7]), 3, PAD), 9)
    assert first["input_ids"].tolist() == [3, 4, 5]
    assert first["shift_labels"].tolist() == [4, 5, 6]
    assert last["input_ids"].tolist() == [6, 7, PAD]
    assert last["shift_labels"].tolist() == [7, IGNORE_INDEX, IGNORE_INDEX]


@settings(max_examples=examples(50), deadline=None)
@given(indices=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_a_batch_is_its_blocks(indices):
    blocks = BlockDataset(row(range(20)), 3, PAD)
    batch = identity_collator(blocks.__getitems__(indices))
    for name, rows in batch.items():
        assert rows.dtype == torch.int64
        assert torch.equal(rows, torch.stack([blocks[i][name] for i in indices]))
    assert torch.equal(batch["labels"], batch["shift_labels"])


@settings(max_examples=examples(100), deadline=None)
@given(
    tokens=st.lists(IDS, min_size=2, max_size=70, unique=True),
    length=st.integers(1, 20),
    epoch=st.integers(0, 5),
)
def test_an_epoch_cuts_the_row_elsewhere_and_still_reads_it_once(tokens, length, epoch):
    """The row is a ring: one token is not predicted, the one at which it is cut."""
    ring = BlockDataset(row(tokens), length, PAD, seed=3)
    read = [ring[epoch * len(ring) + block] for block in range(len(ring))]
    targets = [block["shift_labels"][block["shift_labels"] != IGNORE_INDEX] for block in read]
    start, *rest = torch.cat([read[0]["input_ids"][:1], *targets]).tolist()
    place = tokens.index(start)
    assert [start, *rest] == tokens[place:] + tokens[:place]
    assert epoch or place == 0
    fixed = BlockDataset(row(tokens), length, PAD)
    assert epoch or all(
        torch.equal(block[name], fixed[index][name])
        for index, block in enumerate(read)
        for name in block
    )


def test_epochs_are_cut_at_places_of_their_own():
    ring = BlockDataset(row(range(1000)), 100, PAD, seed=0)
    cuts = [ring[epoch * len(ring)]["input_ids"][0].item() for epoch in range(30)]
    assert len(set(cuts)) > 25
    other = BlockDataset(row(range(1000)), 100, PAD, seed=1)
    assert cuts[1:] != [other[epoch * len(other)]["input_ids"][0].item() for epoch in range(1, 30)]


def test_blocks_end():
    blocks = BlockDataset(row(range(7)), 3, PAD)
    assert len(list(itertools.islice(blocks, 9))) == len(blocks) == 2
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"no block {index}: there are 2"):
            blocks[index]


@pytest.mark.parametrize("tokens", [[], [4]])
def test_a_row_that_predicts_nothing_is_one_ignored_block(tokens):
    (block,) = itertools.islice(BlockDataset(row(tokens), 4, PAD), 9)
    assert (block["shift_labels"] == IGNORE_INDEX).all()
    assert block["input_ids"].tolist() == [*tokens, *[PAD] * (4 - len(tokens))]


@settings(max_examples=examples(200), deadline=None)
@given(
    tokens=st.lists(IDS, min_size=2, max_size=70), length=st.integers(1, 9), count=st.integers(1, 8)
)
@example(tokens=list(range(33)), length=4, count=4)  # every segment is just full
@example(tokens=list(range(34)), length=4, count=4)  # and one token over
def test_streams_predict_every_token_but_the_first_once_and_go_on_where_they_were(
    tokens, length, count
):
    streams = TBPTTDataset(row(tokens), length, PAD, count)
    inputs, targets = ([[] for _ in range(count)] for _ in range(2))
    for segment in range(len(streams) // count):
        batch = identity_collator(
            streams.__getitems__(list(range(segment * count, (segment + 1) * count)))
        )
        assert (batch["segment"], batch["stream"]) == (segment, 0)
        counted = batch["shift_labels"] != IGNORE_INDEX
        for stream in range(count):
            inputs[stream] += batch["input_ids"][stream][counted[stream]].tolist()
            targets[stream] += batch["shift_labels"][stream][counted[stream]].tolist()
    assert list(itertools.chain(*targets)) == tokens[1:]
    assert list(itertools.chain(*inputs)) == tokens[:-1]
    assert len({len(stream) for stream in targets if stream}) <= 2  # all alike but the last
    with pytest.raises(IndexError, match=f"no segment {len(streams)}"):
        streams[len(streams)]


@settings(max_examples=examples(40), deadline=None)
@given(documents=st.lists(st.lists(IDS, max_size=9), max_size=9), wide=st.booleans())
def test_the_row_is_the_documents(documents, wide):
    with tempfile.TemporaryDirectory() as folder:
        packed = make(Path(folder), iter(documents), vocab_size=2**16 + wide)
        assert packed.tokens.dtype == (numpy.uint32 if wide else numpy.uint16)
        assert packed.tokens.tolist() == list(itertools.chain(*documents))
        assert len(packed) == sum(map(len, documents))
        bounds = itertools.pairwise([*packed.starts, len(packed)])
        assert [packed.tokens[start:end].tolist() for start, end in bounds] == documents


def test_an_id_is_not_cut_to_fit(tmp_path):
    assert make(tmp_path, [[2**16 - 1]], vocab_size=2**16).tokens.tolist() == [2**16 - 1]
    assert make(tmp_path, [[2**20]], key="b", vocab_size=2**20 + 1).tokens.tolist() == [2**20]
    with pytest.raises(OverflowError):
        make(tmp_path, [[2**16]], key="c", vocab_size=2**16)
    assert make(tmp_path, [[7]], key="c", vocab_size=2**16).tokens.tolist() == [7]


def test_the_tokens_are_mapped_not_read(tmp_path):
    packed = make(tmp_path)
    assert isinstance(packed.tokens, numpy.memmap)
    assert not packed.tokens.flags.writeable


def test_text_to_blocks_and_back(tmp_path, tokenizer):
    texts = [*SENTENCES, "", "é\n"]
    packed = make(tmp_path, encode_documents(texts, tokenizer), vocab_size=len(tokenizer))
    assert (packed.tokens[packed.starts] == tokenizer.bos_token_id).all()
    assert (packed.tokens[packed.starts[1:] - 1] == tokenizer.eos_token_id).all()
    assert len(packed.starts) == len(texts)
    assert tokenizer.decode(packed.tokens.tolist(), skip_special_tokens=True) == "".join(texts)


def test_what_was_packed_is_used_again(tmp_path):
    first = make(tmp_path)
    again = make(tmp_path, never())
    assert again.tokens.tolist() == first.tokens.tolist() == ROW
    assert again.starts.tolist() == first.starts.tolist() == [0, 4, 6]
    assert make(tmp_path, [[1, 2]], key="b").tokens.tolist() == [1, 2]


@settings(max_examples=examples(60), deadline=None)
@given(
    documents=st.lists(st.lists(IDS, max_size=5), max_size=9),
    stops=st.lists(st.integers(0, 9), max_size=4),
)
def test_what_is_packed_before_a_stop_is_not_packed_again(documents, stops):
    with tempfile.TemporaryDirectory() as folder:
        reached, started = 0, []
        for stop in stops:
            if reached + stop >= len(documents):
                break
            reached += stop
            with pytest.raises(KeyboardInterrupt):
                pack(
                    read_each(Breaking(documents, reached), started),
                    key="a",
                    vocab_size=9,
                    folder=Path(folder),
                )
            assert not list(Path(folder).glob("*.json"))
        packed = pack(read_each(documents, started), key="a", vocab_size=9, folder=Path(folder))
        assert packed.tokens.tolist() == list(itertools.chain(*documents))
        bounds = itertools.pairwise([*packed.starts, len(packed)])
        assert [packed.tokens[start:end].tolist() for start, end in bounds] == documents
        assert (started[-1] or 0) == reached
        assert packed.state == (len(documents) or None)


class Breaking(list):
    """The documents, but for a stop that comes after some of them."""

    def __init__(self, documents, after):
        super().__init__(documents)
        self.after = after

    def __iter__(self):
        return breaking(super().__iter__(), self.after)


def pack_until_killed(folder, stop):
    """Pack 200 documents and sync after each, until this process kills itself at number `stop`."""
    packing.SYNC_SECONDS = 0.0

    def read(state):
        for number in range(state or 0, 200):
            if number == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            yield numpy.arange(number, dtype=numpy.int64), numpy.array([number]), number + 1

    pack(read, key="a", vocab_size=300, folder=folder)


# A fork need not import torch again. It only packs, so that the threads it lacks do not matter.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_loses_nothing_that_was_made_sure_of(tmp_path):
    method = "fork" if sys.platform == "linux" else "spawn"
    process = multiprocessing.get_context(method).Process(
        target=pack_until_killed, args=(tmp_path, 120)
    )
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    (bin_path,) = tmp_path.glob("*.bin")
    with bin_path.open("ab") as file:
        file.write(b"torn")  # what was written after the last time, or half of it
    started = []
    documents = [list(range(number)) for number in range(200)]
    packed = pack(read_each(documents, started), key="a", vocab_size=300, folder=tmp_path)
    assert 100 < started[0] <= 120
    assert packed.tokens.tolist() == list(itertools.chain(*documents))
    assert packed.starts.tolist() == [n * (n - 1) // 2 for n in range(200)]


@pytest.mark.parametrize("damage", ["short", "no JSON", "no file"])
def test_progress_that_is_not_on_disk_is_not_believed(tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Breaking(DOCUMENTS, 2))
    (bin_path,), (part,) = tmp_path.glob("*.bin"), tmp_path.glob("*.part")
    if damage == "short":
        bin_path.write_bytes(bin_path.read_bytes()[:-1])
    elif damage == "no JSON":
        part.write_text(part.read_text()[:9])
    else:
        bin_path.unlink()
    packed = make(tmp_path)
    assert packed.tokens.tolist() == ROW
    assert packed.starts.tolist() == [0, 4, 6]


def test_a_full_disk_is_told_and_costs_nothing_twice(tmp_path, monkeypatch):
    import rung.data.packing

    append, count = rung.data.packing._append, itertools.count()

    def fill(*arguments):
        if next(count) == 2:
            raise OSError(28, "No space left on device")
        append(*arguments)

    with (
        monkeypatch.context() as patched,
        pytest.raises(RunError, match="No space left on device.: make room there"),
    ):
        patched.setattr(rung.data.packing, "_append", fill)
        make(tmp_path)
    started = []
    assert (
        pack(read_each(DOCUMENTS, started), key="a", vocab_size=9, folder=tmp_path).tokens.tolist()
        == ROW
    )
    assert started == [2]


def test_two_at_once_pack_once(tmp_path):
    started = []
    slow = [*DOCUMENTS, *DOCUMENTS]

    def read(state):
        for chunk in read_each(slow, started)(state):
            time.sleep(0.02)
            yield chunk

    with ThreadPoolExecutor(2) as threads:
        found = [
            threads.submit(pack, read, key="a", vocab_size=9, folder=tmp_path) for _ in range(2)
        ]
    assert [f.result().tokens.tolist() for f in found] == [ROW + ROW] * 2
    assert started == [None]


def test_the_key_knows_what_ids_depend_on(tmp_path):
    make(tmp_path)
    assert make(tmp_path, [[3]], key="b").tokens.tolist() == [3]
    assert make(tmp_path, never()).tokens.tolist() == ROW


@pytest.mark.parametrize("suffix", [".bin", ".starts", ".json"])
@pytest.mark.parametrize("kept", [None, 0, 3])
def test_files_that_are_not_whole_are_written_again(tmp_path, suffix, kept):
    make(tmp_path)
    (path,) = tmp_path.glob(f"*{suffix}")
    whole = path.read_bytes()
    path.unlink() if kept is None else path.write_bytes(whole[:kept])
    packed = make(tmp_path)
    assert packed.tokens.tolist() == ROW
    assert packed.starts.tolist() == [0, 4, 6]
    assert path.read_bytes() == whole
