"""Streaming a data set: the same documents, nothing held out trained on, resumed anywhere."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rung.data import files, stream
from rung.data.corpus import load_corpus
from rung.data.store import SPLITS
from rung.errors import CorpusError
from rung.workflows.prepare import pack_train
from tests.conftest import examples, make_text, write
from tests.data.conftest import ROWS, make_table, read_stream, texts, write_shards


@pytest.fixture
def small_reads(monkeypatch):
    """Streams that store little, and say often where they are."""
    monkeypatch.setattr(stream, "BEGINNING_BYTES", 20_000)
    monkeypatch.setattr(stream, "STREAM_BATCH_CHARACTERS", 300)


@pytest.mark.parametrize(
    "names", [("train",), ("train", "validation"), ("train", "validation", "test")]
)
def test_a_stream_is_the_data_set(hub, small_reads, names):
    write_shards(hub / "my/set", ROWS * 3, names=names)
    share = (
        None if "validation" in names else 0.05
    )  # a stored text that is small would hold out more
    stored, streamed = load_corpus("hf:my/set", held_out=share), load_corpus("stream:my/set")
    for split in SPLITS:
        assert list(streamed.split(split)["text"]) == list(stored.split(split)["text"])
    assert read_stream(streamed) == list(stored.train["text"]) == read_stream(stored)
    assert streamed.bytes == stored.bytes
    assert load_corpus("stream:my/set").fingerprint == streamed.fingerprint


def test_of_a_stream_only_the_beginning_is_stored_and_nothing_held_out_is_trained_on(
    hub, small_reads
):
    rows = [f"{i} {make_text(1, seed=i)}" for i in range(600)]
    write_shards(hub / "my/set", rows)
    corpus = load_corpus("stream:my/set")
    assert sum(corpus.bytes.values()) < 21_000
    trained = read_stream(corpus)
    beginning = list(corpus.train["text"])
    assert trained[: len(beginning)] == beginning
    assert len(trained) > 500
    assert all(files.hash_to_unit_interval(text) >= 0.1 for text in trained)
    assert not set(trained) & {*corpus.validation["text"], *corpus.test["text"]}
    assert trained == list(load_corpus("hf:my/set").train["text"])


@settings(
    max_examples=examples(30),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(places=st.lists(st.floats(0, 0.999), min_size=3, max_size=9, unique=True))
def test_a_stream_of_few_documents_trains_on_what_is_not_held_out(hub, monkeypatch, places):
    monkeypatch.setattr(files, "hash_to_unit_interval", lambda text: float(text))
    with tempfile.TemporaryDirectory() as folder:
        write(
            Path(folder) / "train-00000-of-00001.parquet",
            make_table(".parquet", [repr(place) for place in places]),
        )
        corpus = load_corpus(f"stream:{folder}")
        assert sorted(texts(corpus)) == sorted(map(repr, places))
        assert read_stream(corpus) == list(corpus.train["text"])


def test_a_stream_goes_on_from_any_of_its_states(hub, small_reads):
    write_shards(hub / "my/set", ROWS * 4)
    corpus = load_corpus("stream:my/set")
    everything, before = read_stream(corpus), []
    for batch, state in corpus.read_train():
        before += batch
        assert before + read_stream(corpus, json.loads(json.dumps(state))) == everything
    assert state["bytes"] == sum(len(text.encode()) for text in everything)


def test_a_stream_ends_where_it_is_told_to(hub, small_reads):
    write_shards(hub / "my/set", ROWS * 10)
    whole, part = load_corpus("stream:my/set"), load_corpus("stream:my/set@9KB")
    assert read_stream(part) == read_stream(whole)[: len(read_stream(part))]
    assert 9_000 <= sum(len(text.encode()) for text in read_stream(part)) < 9_100
    assert part.fingerprint != whole.fingerprint
    *_, (_, state) = part.read_train()
    assert read_stream(part, state) == []


def test_a_changed_data_set_is_another_stream(hub, small_reads):
    write_shards(hub / "my/set", ROWS * 40)
    before = load_corpus("stream:my/set")
    write_shards(hub / "my/set", [*ROWS * 40, "one more, far behind what is stored"])
    after = load_corpus("stream:my/set")
    assert list(before.train["text"]) == list(after.train["text"])
    assert before.fingerprint != after.fingerprint


def test_a_broken_connection_keeps_what_was_read(
    hub, small_reads, tmp_path, tokenizer, monkeypatch
):
    write_shards(hub / "my/set", ROWS * 4)
    corpus = load_corpus("stream:my/set")
    whole = pack_train(corpus, tokenizer)
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    select, states = files.select_text_column, []

    def break_off(rows, *where):
        rows, column = select(rows, *where)
        return BrokenRows(rows, 100, states), column

    with (
        monkeypatch.context() as patched,
        pytest.raises(CorpusError, match="broke off after .* bytes .*reset by peer"),
    ):
        patched.setattr(files, "select_text_column", break_off)
        pack_train(corpus, tokenizer)
    with monkeypatch.context() as patched:
        patched.setattr(
            files,
            "select_text_column",
            lambda *given: (BrokenRows(select(*given)[0], 999, states), "text"),
        )
        packed = pack_train(corpus, tokenizer)
    assert len(states) == 1  # the second time did not begin at the beginning
    assert packed.tokens.tolist() == whole.tokens.tolist()
    assert packed.starts.tolist() == whole.starts.tolist()


class BrokenRows:
    """Rows of a stream whose connection breaks after some of them."""

    def __init__(self, rows, after, states):
        self.rows, self.after, self.states = rows, after, states

    def __iter__(self):
        for number, row in enumerate(self.rows):
            if number == self.after:
                raise ConnectionResetError("reset by peer")
            yield row

    def state_dict(self):
        return self.rows.state_dict()

    def load_state_dict(self, state):
        self.states.append(state)
        self.rows.load_state_dict(state)


def test_a_stream_that_is_none_is_told(hub, small_reads):
    write_shards(hub / "bodies", ROWS)
    for path in (hub / "bodies").iterdir():
        path.write_bytes(make_table(".parquet", ROWS).replace(b"text", b"body"))
    for source, message in {
        "nobody/nothing": "cannot be streamed: ",
        "": "names no data set: write stream:",
    }.items():
        with pytest.raises(CorpusError, match=message):
            load_corpus(f"stream:{source}")
