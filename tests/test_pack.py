"""Tokens on disk and in blocks: each predicted once, none twice, and no half-written row is ever read."""

import itertools
import tempfile
from pathlib import Path

import numpy
import pytest
import torch
from conftest import SENTENCES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rung.pack import IGNORED, Blocks, Packed, Streams, keep_batch, pack
from rung.tokenizer import encode_documents

PAD = 9
DOCUMENTS = [[0, 5, 6, 1], [0, 1], [0, 7, 7, 7, 1]]
ROW = list(itertools.chain(*DOCUMENTS))
IDS = st.integers(0, 2**16 - 1)


def make(folder, documents=DOCUMENTS, key="a", vocab_size=100):
    return pack(documents, key=key, vocab_size=vocab_size, folder=folder)


def row(tokens):
    return Packed(tokens=numpy.array(tokens, dtype=numpy.uint16), starts=numpy.array([0]))


def never():
    pytest.fail("packed again")
    yield


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(IDS, min_size=2, max_size=70), length=st.integers(1, 20))
@example(tokens=list(range(17)), length=16)  # the last block is just full
@example(tokens=list(range(18)), length=16)  # and has one token over
def test_blocks_predict_every_token_but_the_first_once(tokens, length):
    blocks = Blocks(row(tokens), length, PAD)
    inputs, targets = [], []
    for block in itertools.islice(blocks, len(tokens)):
        assert block["input_ids"].shape == block["shift_labels"].shape == (length,)
        counted = block["shift_labels"] != IGNORED
        inputs += block["input_ids"][counted].tolist()
        targets += block["shift_labels"][counted].tolist()
    assert targets == tokens[1:]
    assert inputs == tokens[:-1]
    assert len(blocks) == -(-(len(tokens) - 1) // length)


def test_only_the_end_of_the_last_block_is_padded():
    first, last = itertools.islice(Blocks(row([3, 4, 5, 6, 7]), 3, PAD), 9)
    assert first["input_ids"].tolist() == [3, 4, 5]
    assert first["shift_labels"].tolist() == [4, 5, 6]
    assert last["input_ids"].tolist() == [6, 7, PAD]
    assert last["shift_labels"].tolist() == [7, IGNORED, IGNORED]


@settings(max_examples=50, deadline=None)
@given(indices=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_a_batch_is_its_blocks(indices):
    blocks = Blocks(row(range(20)), 3, PAD)
    batch = keep_batch(blocks.__getitems__(indices))
    for name, rows in batch.items():
        assert rows.dtype == torch.int64
        assert torch.equal(rows, torch.stack([blocks[i][name] for i in indices]))
    assert torch.equal(batch["labels"], batch["shift_labels"])


def test_blocks_end():
    blocks = Blocks(row(range(7)), 3, PAD)
    assert len(list(itertools.islice(blocks, 9))) == len(blocks) == 2
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"no block {index}: there are 2"):
            blocks[index]


@pytest.mark.parametrize("tokens", [[], [4]])
def test_a_row_that_predicts_nothing_is_one_ignored_block(tokens):
    (block,) = itertools.islice(Blocks(row(tokens), 4, PAD), 9)
    assert (block["shift_labels"] == IGNORED).all()
    assert block["input_ids"].tolist() == [*tokens, *[PAD] * (4 - len(tokens))]


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(IDS, min_size=2, max_size=70), length=st.integers(1, 9), count=st.integers(1, 8))
@example(tokens=list(range(33)), length=4, count=4)  # every stretch is just full
@example(tokens=list(range(34)), length=4, count=4)  # and one token over
def test_streams_predict_every_token_but_the_first_once_and_go_on_where_they_were(tokens, length, count):
    streams = Streams(row(tokens), length, PAD, count)
    inputs, targets = ([[] for _ in range(count)] for _ in range(2))
    for stretch in range(len(streams) // count):
        batch = keep_batch(streams.__getitems__(list(range(stretch * count, (stretch + 1) * count))))
        assert (batch["stretch"], batch["stream"]) == (stretch, 0)
        counted = batch["shift_labels"] != IGNORED
        for stream in range(count):
            inputs[stream] += batch["input_ids"][stream][counted[stream]].tolist()
            targets[stream] += batch["shift_labels"][stream][counted[stream]].tolist()
    assert list(itertools.chain(*targets)) == tokens[1:]
    assert list(itertools.chain(*inputs)) == tokens[:-1]
    assert len({len(stream) for stream in targets if stream}) <= 2  # all alike but the last
    with pytest.raises(IndexError, match=f"no stretch {len(streams)}"):
        streams[len(streams)]


@settings(max_examples=40, deadline=None)
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
    assert not list(tmp_path.glob(".*"))


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


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_crash_leaves_no_half(tmp_path, monkeypatch, renamed):
    replace, done = Path.replace, []

    def crash(self, target):
        if len(done) == renamed:
            raise KeyboardInterrupt
        done.append(replace(self, target))

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", crash)
        make(tmp_path, [[8, 8]])
    assert not list(tmp_path.glob(".*"))
    assert make(tmp_path).tokens.tolist() == ROW
    assert make(tmp_path, never()).starts.tolist() == [0, 4, 6]


def test_a_crash_while_documents_are_read_leaves_nothing(tmp_path):
    def documents():
        yield [1, 2]
        raise RuntimeError("read error")

    with pytest.raises(RuntimeError, match="read error"):
        make(tmp_path, documents())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".bin", ".npy", ".json"])
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
