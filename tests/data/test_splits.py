"""Cutting documents into splits: the same every time, and each document in one of them."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.data import files, splits
from rung.data.corpus import load_corpus
from rung.data.store import SPLITS
from rung.errors import CorpusError
from tests.conftest import examples, make_text, write
from tests.data.conftest import texts


@pytest.mark.parametrize("between", ["\n\n", "\n"])
def test_an_insertion_moves_nothing_else(tmp_path, between):
    text = make_text(1500, between=between)
    path = write(tmp_path / "a.txt", text)
    before = place_of(load_corpus(str(path)))
    paragraphs = text.split(between)
    for at in (0, 700, len(paragraphs) - 1):
        changed = between.join([*paragraphs[:at], "Here is something new.", *paragraphs[at:]])
        after = place_of(load_corpus(str(write(path, changed))))
        kept = before.keys() & after.keys()
        assert len(kept) >= len(before) - 4
        assert all(before[t] == after[t] for t in kept)


@settings(max_examples=examples(25), deadline=None)
@given(lines=st.lists(st.text("abc", min_size=1, max_size=3), min_size=3, max_size=40))
def test_splits_are_disjoint_and_cover_everything(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.txt", "\n".join(lines))
        if len(set(lines)) < 3:
            with pytest.raises(CorpusError, match="too little text"):
                load_corpus(str(path), "lines")
            return
        corpus = load_corpus(str(path), "lines")
    assert sorted(texts(corpus)) == sorted(lines)
    parts = [set(corpus.split(split)["text"]) for split in SPLITS]
    assert all(parts)
    assert sum(map(len, parts)) == len(set(lines))


@pytest.mark.parametrize(
    "places", [[0.01, 0.02, 0.5], [0.01, 0.02, 0.03], [0.9, 0.8, 0.7], [0.07, 0.08, 0.09, 0.06]]
)
def test_a_split_left_empty_takes_its_neighbour(tmp_path, monkeypatch, places):
    monkeypatch.setattr(files, "hash_to_unit_interval", lambda text: places[int(text)])
    path = write(tmp_path / "a.txt", "\n".join(str(i) for i in range(len(places))))
    corpus = load_corpus(str(path), "lines")
    placed = [
        [places[int(t)] for t in corpus.split(split)["text"]]
        for split in ("test", "validation", "train")
    ]
    assert all(placed)
    assert [p for part in placed for p in sorted(part)] == sorted(places)


def test_the_usual_cut_is_by_place_alone(tmp_path):
    lines = "\n".join(
        f"line {i} of two thousand, and of some length as lines go" for i in range(2000)
    )
    corpus = load_corpus(str(write(tmp_path / "a.txt", lines)), "lines")
    bounds = {"test": (0, 0.05), "validation": (0.05, 0.1), "train": (0.1, 1)}
    for split, (low, high) in bounds.items():
        assert all(
            low <= files.hash_to_unit_interval(text) < high for text in corpus.split(split)["text"]
        )


def place_of(corpus):
    return {text: split for split in SPLITS for text in corpus.split(split)[:]["text"]}


def test_a_small_text_holds_out_more_and_gives_it_back_as_it_grows(tmp_path):
    """From a few documents to many: test is never too small to say something, and nothing moves
    towards test.
    """
    before, order = {}, list(reversed(SPLITS))
    for paragraphs in (100, 250, 500, 1000):
        corpus = load_corpus(
            str(write(tmp_path / "a.txt", make_text(paragraphs, between="\n"))), "lines"
        )
        assert len(set(corpus.test["text"])) >= splits.MIN_TEST_DOCUMENTS
        assert corpus.bytes["test"] >= min(splits.MIN_TEST_BYTES, 0.1 * sum(corpus.bytes.values()))
        assert len(corpus.train) > 0.6 * len(texts(corpus))
        after = place_of(corpus)
        moved = [
            (before[t], after[t]) for t in before.keys() & after.keys() if before[t] != after[t]
        ]
        assert all(order.index(there) > order.index(here) for here, there in moved)
        before = after
    again = load_corpus(str(write(tmp_path / "a.txt", make_text(1400, between="\n"))), "lines")
    after = place_of(again)
    assert all(after[text] == split for text, split in before.items())


@pytest.mark.parametrize("size", [8_000, 20_000, 60_000, 200_000])
def test_a_small_file_has_a_test_split_that_says_something(tmp_path, size):
    """A file of 20 kB had one test document."""
    corpus = load_corpus(str(write(tmp_path / "a.txt", make_text(size // 90)[:size])))
    assert len(set(corpus.test["text"])) >= min(splits.MIN_TEST_DOCUMENTS, size // 4000)
    assert corpus.bytes["test"] >= min(splits.MIN_TEST_BYTES, size / 12)
    assert corpus.bytes["train"] > 0.55 * size


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_a_share_that_is_asked_for_is_held_out(tmp_path, share):
    corpus = load_corpus(
        str(write(tmp_path / "a.txt", "\n".join(map(str, range(3000))))), "lines", held_out=share
    )
    for split in ("validation", "test"):
        assert len(corpus.split(split)) == pytest.approx(3000 * share, rel=0.3)


def test_nothing_is_held_out_where_that_is_asked_for(tmp_path):
    """A file given to KenLM is counted whole."""
    path = str(write(tmp_path / "a.txt", make_text(100)))
    corpus = load_corpus(path, held_out=0)
    assert "".join(corpus.train["text"]) == Path(path).read_text()
    assert (len(corpus.validation), len(corpus.test), corpus.bytes["test"]) == (0, 0, 0)
    assert corpus.fingerprint != load_corpus(path).fingerprint
    assert list(
        load_corpus(str(write(tmp_path / "b.txt", "one line")), held_out=0).train["text"]
    ) == ["one line"]
    for name in ("train", "test"):
        write(tmp_path / f"own/{name}.txt", name)
    with pytest.raises(
        CorpusError, match="held_out is 0, but .*own has splits of its own: leave it out"
    ):
        load_corpus(str(tmp_path / "own"), held_out=0)


@pytest.mark.parametrize("documents", ["lines", "paragraphs"])
def test_a_text_of_equal_documents_is_called_so(tmp_path, documents):
    """The advice was to give more text, or to try what was tried."""
    path = write(tmp_path / "a.txt", "the same line, over and over again, fifty bytes.\n" * 1000)
    with pytest.raises(
        CorpusError,
        match="too little text .* all documents are equal, one line 1,000 times; give a text",
    ):
        load_corpus(str(path), documents)
    write(path, "one line, fifty bytes long.\n" * 300 + "and another line, also as long.\n" * 300)
    with pytest.raises(
        CorpusError, match="only 2 of its 600 lines are different; give a text with other lines"
    ):
        load_corpus(str(path), "lines")
