"""Text in, splits out: honest ones, the same every time, and no text that is not there."""

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rung.data import files, search, sources, splits, store, stream
from rung.data.corpus import load_corpus
from rung.data.store import SPLITS
from rung.device import cache_folder
from rung.errors import CorpusError
from rung.workflows.prepare import pack_train

ROWS = [f"row {i} says “{i * i}”" for i in range(60)]
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "he",
    "for",
    "with",
    "as",
    "his",
    "on",
    "be",
    "by",
    "had",
    "not",
)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def make_text(paragraphs, seed=0, between="\n\n", words=60):
    dice = random.Random(seed)
    return (
        between.join(
            " ".join(dice.choices(WORDS, k=dice.randint(1, 2 * words))) for _ in range(paragraphs)
        )
        + "\n"
    )


def make_table(suffix, rows):
    import pandas

    frame = pandas.DataFrame({"id": range(len(rows)), "text": rows})
    if suffix == ".parquet":
        return frame.to_parquet()
    if suffix in (".csv", ".tsv"):
        return frame.to_csv(index=False, sep="," if suffix == ".csv" else "\t").encode()
    return frame.to_json(orient="records", lines=suffix != ".json", force_ascii=False).encode()


def texts(corpus):
    return [text for split in SPLITS for text in corpus.split(split)["text"]]


def test_a_folder_is_read_with_its_folders_and_without_hidden_files(tmp_path):
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "b/c/d.md.gz", gzip.compress(b"d"))
    write(tmp_path / "b/e.jsonl", make_table(".jsonl", ["e"]))
    for left_out in ("photo.png", ".hidden.txt", ".git/x.txt", "b/.y/z/x.txt", "none"):
        write(tmp_path / left_out, "x")
    corpus = load_corpus(str(tmp_path), "lines")
    assert sorted(texts(corpus)) == ["a", "d", "e"]
    assert corpus.name == tmp_path.name
    assert list(load_corpus(str(tmp_path / "**/*.*l"), whole=True).train["text"]) == ["e"]


def test_an_empty_line_is_a_line_where_the_text_is_not_cut(tmp_path):
    """As for KenLM; cut by place, all of them would come to lie on one side, and none are kept."""
    for name in ("train", "valid", "test"):
        write(tmp_path / f"split/{name}.txt", f"\n{name}\n\n\nlast\n\n")
    corpus = load_corpus(str(tmp_path / "split"), "lines")
    assert list(corpus.train["text"]) == ["", "train", "", "", "last", ""]
    path = write(tmp_path / "a.txt", "1\n\n2\n \n3\n")
    assert list(load_corpus(str(path), "lines", whole=True).test["text"]) == [
        "1",
        "",
        "2",
        " ",
        "3",
    ]
    assert sorted(texts(load_corpus(str(path), "lines"))) == ["1", "2", "3"]
    assert list(load_corpus(str(path), "lines", held_out=0).train["text"]) == [
        "1",
        "",
        "2",
        " ",
        "3",
    ]


def test_an_empty_file_among_others_is_passed_over(tmp_path):
    for name in ("__init__.py", "blank.txt", "rows.csv"):
        write(
            tmp_path / name, {"__init__.py": "", "blank.txt": "\n \n", "rows.csv": "text\n"}[name]
        )
    write(tmp_path / "full.py", "1\n2\n3\n")
    assert sorted(texts(load_corpus(str(tmp_path), "lines"))) == ["1", "2", "3"]


@pytest.mark.parametrize("validation", ["valid", "validation", "dev"])
@pytest.mark.parametrize(
    "entry", ["{}.txt", "{}.jsonl.gz", "{}/deep/a.md", "{}-00000-of-00001.parquet"]
)
def test_entries_called_after_splits_are_splits(tmp_path, entry, validation):
    for name in ("train", validation, "test"):
        path = tmp_path / entry.format(name)
        suffix = files.uncompressed_suffix(path)
        data = make_table(suffix, [name]) if suffix in files.TABLE_SUFFIXES else name.encode()
        write(path, gzip.compress(data) if path.suffix == ".gz" else data)
    write(tmp_path / "README.md", "About the data.")
    corpus = load_corpus(str(tmp_path))
    assert [list(corpus.split(split)["text"]) for split in SPLITS] == [
        ["train"],
        [validation],
        ["test"],
    ]
    train = next(path for path in tmp_path.iterdir() if path.name.startswith("train"))
    assert (
        texts(load_corpus(str(train), whole=True)) == ["train"] * 3
    )  # named alone it is without its neighbours


def test_validation_stands_in_for_test(tmp_path):
    write(tmp_path / "train.txt", "a")
    write(tmp_path / "valid.txt", "b")
    assert list(load_corpus(str(tmp_path)).test["text"]) == ["b"]


def test_a_split_without_training_text_is_refused(tmp_path):
    write(tmp_path / "test.txt", "a")
    with pytest.raises(CorpusError, match="has test but no train split"):
        load_corpus(str(tmp_path))


def test_a_program_is_not_a_corpus_with_splits(tmp_path):
    for name in ("train.py", "test.py", "model.py", "dev/tool.py"):
        write(tmp_path / name, f"# {name}\n")
    (tmp_path / "test").mkdir()
    assert len(set(texts(load_corpus(str(tmp_path), "lines")))) == 4


@pytest.mark.parametrize("between", ["\n\n", "\n"])
def test_an_insertion_moves_nothing_else(tmp_path, between):
    text = make_text(1500, between=between)
    path = write(tmp_path / "a.txt", text)
    before = {t: split for split in SPLITS for t in load_corpus(str(path)).split(split)["text"]}
    paragraphs = text.split(between)
    for at in (0, 700, len(paragraphs) - 1):
        changed = between.join([*paragraphs[:at], "Here is something new.", *paragraphs[at:]])
        corpus = load_corpus(str(write(path, changed)))
        after = {t: split for split in SPLITS for t in corpus.split(split)["text"]}
        kept = before.keys() & after.keys()
        assert len(kept) >= len(before) - 4
        assert all(before[t] == after[t] for t in kept)


@settings(max_examples=25, deadline=None)
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
    return {text: split for split in SPLITS for text in corpus.split(split)["text"]}


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
    assert all(place_of(again)[text] == split for text, split in before.items())


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


def test_whole_files_are_every_split(tmp_path):
    corpus = load_corpus(str(write(tmp_path / "a.txt", "one line")), whole=True)
    assert [list(corpus.split(split)["text"]) for split in SPLITS] == [["one line"]] * 3
    assert corpus.is_unsplit
    with pytest.raises(CorpusError, match="no split 'trian'"):
        corpus.split("trian")


def test_the_second_time_nothing_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", make_text(100))
    first = load_corpus(str(path))
    monkeypatch.setattr(files, "read_documents", lambda *_: pytest.fail("read again"))
    assert load_corpus(str(path)).fingerprint == first.fingerprint
    with pytest.raises(pytest.fail.Exception):
        load_corpus(str(path), "lines")


def test_a_changed_file_is_another_corpus(tmp_path):
    path = write(tmp_path / "a.txt", make_text(100))
    status = path.stat()
    first = load_corpus(str(path))
    write(path, path.read_bytes().replace(b"the", b"THE", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    second = load_corpus(str(path))
    assert first.fingerprint != second.fingerprint
    assert "THE" in "".join(texts(second))


def test_the_fingerprint_knows_content_and_split(tmp_path):
    for folder in ("a", "b"):
        for name in ("train", "valid", "test"):
            write(tmp_path / folder / f"{name}.txt", name)
    assert (
        load_corpus(str(tmp_path / "a")).fingerprint == load_corpus(str(tmp_path / "b")).fingerprint
    )
    write(tmp_path / "a/valid.txt", "b\nc")
    write(tmp_path / "b/train.txt", "train\nb")
    write(tmp_path / "b/valid.txt", "c")  # the same documents in the same order
    first, second = (load_corpus(str(tmp_path / folder), "lines") for folder in "ab")
    assert texts(first) == texts(second)
    assert first.fingerprint != second.fingerprint


def test_a_failure_leaves_nothing_in_the_cache(tmp_path):
    before = {path.name for path in (cache_folder() / "corpora").glob("[!.]*")}
    with pytest.raises(CorpusError, match="not UTF-8"):
        load_corpus(str(write(tmp_path / "a.txt", b"a\n" * 3000 + b"\xff")), "lines")
    assert {path.name for path in (cache_folder() / "corpora").glob("[!.]*")} == before
    assert not [path for path in (cache_folder() / "corpora").glob(".*") if path.suffix != ".lock"]


def test_a_stored_text_that_was_cut_short_is_read_again(tmp_path, monkeypatch):
    """Cut where one batch ends and the next begins, an Arrow file is one of fewer documents: no
    reader complains.
    """
    import pyarrow

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "WRITE_BUFFER_CHARACTERS", 2_000)
    path = write(tmp_path / "a.txt", make_text(300))
    whole = load_corpus(str(path), whole=True)
    (arrow,) = (tmp_path / "cache").rglob("*.arrow")
    with pyarrow.memory_map(str(arrow)) as file:
        reader = pyarrow.ipc.open_stream(file)
        first = len(reader.read_next_batch())
        border = file.tell()
    cut = arrow.with_name("cut")
    cut.write_bytes(arrow.read_bytes()[:border])
    cut.replace(arrow)
    again = load_corpus(str(path), whole=True)
    assert len(again.test) == len(whole.test) > first
    assert texts(again) == texts(whole) and again.fingerprint == whole.fingerprint


FLAT = """
import re, sys, threading, time
import numpy, torch
from pathlib import Path
from rung.data.corpus import load_corpus
from rung.workflows.prepare import pack_train
from rung.data.tokenizer_training import build_tokenizer

def own():  # of the resident pages those that no file backs: mapped ones can be dropped
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

peak, done = 0.0, threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, own())

tokenizer = build_tokenizer("whitespace", map(str, range(100)))
before = own()
threading.Thread(target=watch).start()
text = load_corpus(sys.argv[1], "lines")
packed = pack_train(text, tokenizer)
done.set()
print(len(packed.starts), peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measured in /proc")
def test_memory_stays_flat(tmp_path):
    """So many documents that eight bytes for each would show."""
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i} {i % 97}\n" for i in range(600_000)))
    command = [sys.executable, "-c", FLAT, path]
    documents, megabytes = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(documents) > 500_000
    assert float(megabytes) < 40, megabytes


def test_python_docs():
    corpus = load_corpus("python-docs")
    packages = {}
    for text, package in sources.read_python_docs():
        assert text not in packages, "a duplicate"
        packages[text] = package
    assert set(texts(corpus)) == set(packages)
    assert 1.5e6 < sum(len(text.encode()) for text in packages) < 4e6
    check_packages(corpus, packages)


def test_python_source():
    corpus = load_corpus("python-source")
    packages = dict(sources.read_python_source())
    assert sorted(texts(corpus)) == sorted(packages)
    check_packages(corpus, packages)
    assert (
        load_corpus("python-source").fingerprint
        == corpus.fingerprint
        != load_corpus("python-docs").fingerprint
    )


def check_packages(corpus, packages):
    sides = [{packages[text] for text in corpus.split(split)["text"]} for split in SPLITS]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_twins_are_one_package():
    twins = {
        "_pydecimal": "decimal",
        "_pyio": "io",
        "_py_abc": "abc",
        "_strptime": "strptime",
        "pydoc": "pydoc",
    }
    assert {top: sources._package_of(top) for top in twins} == twins


WIKI = [
    "",
    " = {0} = \n",
    "",
    " One body = {0} <unk> @-@ 1 . \n",
    " = = Section = = \n",
    "",
    " Two . \n",
    "",
]
SIZES = {"train": 5, "validation": 2, "test": 1}


def write_hub(folder, rows, column="text"):
    """Parquet files as the Hub keeps them: `rows` copies the lines for each of so many articles."""
    import datasets

    folder.mkdir(parents=True)
    for split, count in SIZES.items():
        lines = [line.format(f"{split} {i}") for i in range(count) for line in rows]
        datasets.Dataset.from_dict({"id": range(len(lines)), column: lines}).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the Hub."""
    monkeypatch.setenv("RUNG_HUB_MIRROR", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
    return tmp_path / "hub"


def test_wikitext_is_joined_into_articles(hub):
    write_hub(hub / "Salesforce/wikitext/wikitext-2-raw-v1", WIKI)
    corpus = load_corpus("wikitext-2")
    assert {split: len(corpus.split(split)) for split in SPLITS} == SIZES
    lines = [line.format("train 3").strip("\n") or " " for line in WIKI]
    assert (
        corpus.train["text"][3] == "\n".join([*lines[1:], " "]) + "\n"
    )  # the blank line before the next heading
    assert "".join(corpus.test["text"]) == "".join(
        f"{line.format('test 0').strip(chr(10)) or ' '}\n" for line in WIKI
    )
    assert (corpus.name, corpus.fingerprint) == (
        "wikitext-2",
        load_corpus("wikitext-2").fingerprint,
    )
    with pytest.raises(
        CorpusError, match="no configuration 'wikitext-103-raw-v1': choose from wikitext-2-raw-v1"
    ):
        load_corpus("wikitext-103")


@pytest.mark.parametrize("title", ["E", "Valkyria Chronicles III", "1 = 2 ?"])
def test_only_a_heading_of_level_one_opens_an_article(title):
    assert sources.ARTICLE_HEADING.match(f" = {title} = ")
    assert not sources.ARTICLE_HEADING.match(f" = = {title} = = ")
    assert not sources.ARTICLE_HEADING.match(f"{title} = ")


def test_a_folder_laid_out_like_the_hub(hub):
    write_hub(hub / "one", ROWS[:3])
    corpus = load_corpus(f"hf:{hub}/one")
    assert list(corpus.test["text"]) == ROWS[:3]
    assert load_corpus("hf:one").fingerprint == corpus.fingerprint
    write_hub(hub / "two/small", ROWS[:1])
    assert list(load_corpus(f"hf:{hub}/two").test["text"]) == ROWS[:1]
    write_hub(hub / "two/bodies", ROWS[:1], column="body")
    assert list(load_corpus(f"hf:{hub}/two:small").test["text"]) == ROWS[:1]
    write(hub / "three/train.jsonl", make_table(".jsonl", ROWS))
    assert sorted(texts(load_corpus("hf:three"))) == sorted(ROWS)  # only a train split: it is cut
    write(hub / "four/test.jsonl", make_table(".jsonl", ROWS))
    (hub / "five").mkdir()
    for source, message in {
        "two": "has several configurations: choose from bodies, small, as in hf:",
        "two:smal": "has no configuration 'smal': choose from bodies, small",
        "two:bodies": "has no text column: it has id, body; name the one to read with --column",
        "four": "has no train split: it has test",
        "five": "could not be loaded: ",
        "": "names no data set",
    }.items():
        with pytest.raises(CorpusError, match=message):
            load_corpus(f"hf:{source}")


@pytest.fixture
def small_reads(monkeypatch):
    """Streams that store little, and say often where they are."""
    monkeypatch.setattr(stream, "BEGINNING_BYTES", 20_000)
    monkeypatch.setattr(stream, "STREAM_BATCH_CHARACTERS", 300)


def write_shards(folder, rows, count=3, names=("train",)):
    """The rows as parquet files for each split that is named, several of them for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for shard in range(count):
            path = folder / f"{name}-{shard:05}-of-{count:05}.parquet"
            path.write_bytes(
                make_table(".parquet", [f"{name} {row}" for row in rows[shard::count]])
            )


def read_stream(corpus, state=None):
    return [text for batch, _ in corpus.read_train(state) for text in batch]


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
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


def test_a_full_disk_names_the_stream(hub, monkeypatch):
    write_shards(hub / "my/set", ROWS)
    full = OSError("Not enough disk space. Needed: 9 TB (download: 1 TB)")
    monkeypatch.setattr(sources, "_load_folder", lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(
        CorpusError, match="Needed: 9 TB .*; `stream:my/set` reads it without storing its text"
    ):
        load_corpus("hf:my/set")


def test_a_sample_is_from_all_over_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(
        store, "READ_BATCH_BYTES", 1000
    )  # many reads, none of them a multiple of the stride
    corpus = load_corpus(str(write(tmp_path / "a.txt", "\n".join(map(str, range(3000))))), "lines")
    train = list(corpus.train["text"])
    for stride in (1, 2, 7, 5000):
        assert list(corpus.sample_train(stride)) == train[::stride]


def test_documents_are_read_from_any_number(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WRITE_BUFFER_CHARACTERS", 640)
    monkeypatch.setattr(store, "READ_BATCH_BYTES", 100)
    corpus = load_corpus(
        str(write(tmp_path / "a.txt", "\n".join(f"number {i}" for i in range(300)))), "lines"
    )
    train = list(corpus.train["text"])
    assert corpus.train.data.column("text").num_chunks > 3
    for start in (0, 1, 64, 100, len(train) - 1, len(train)):
        assert read_stream(corpus, start) == train[start:]
    done = [state for _, state in corpus.read_train()]
    assert done[-1] == len(train)
    assert len(done) > 10


@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_without_a_network_one_clear_line_comes_soon(tmp_path, environment):
    code = (
        "import sys, time\nslept = []\ntime.sleep = slept.append\nfrom rung.data.corpus import "
        "load_corpus\n"
        "try: load_corpus('wikitext-2')\nexcept Exception as e: "
        "print(repr(e))\nsys.exit(sum(slept) > 5)"
    )
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, "it was tried again and again"
    why = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in environment else "no network"
    assert output.stdout.startswith("CorpusError(") and output.stdout.count("\n") == 1
    assert f"'Salesforce/wikitext' could not be loaded: {why}; use `python-docs`" in output.stdout
    assert output.stderr == ""


def test_a_source_that_is_not_there(tmp_path):
    write(tmp_path / "photo.png", "x")
    for source, message in {
        "nowhere.txt": "no such file or folder: ",
        "": "has no file that can be read: it should hold .txt .text .md .*.parquet.*; it has "
        "photo.png",
        "*.txt": "no file matches .*: check the pattern, and quote it in the shell",
    }.items():
        with pytest.raises(CorpusError, match=message):
            load_corpus(str(tmp_path / source))
    for source in ("python-docs", str(tmp_path)):
        with pytest.raises(
            CorpusError, match="--documents 'words': choose from lines, paragraphs, file"
        ):
            load_corpus(source, "words")
    write(tmp_path / "hollow/a.txt", "")
    write(tmp_path / "hollow/b.txt", "\n")
    with pytest.raises(CorpusError, match="none of 2 files contains any text: .*a.txt, .*b.txt$"):
        load_corpus(str(tmp_path / "hollow"))


def test_pipes_and_folders_that_are_not_entered_are_named(tmp_path, monkeypatch):
    folder, other = tmp_path / "texts", tmp_path / "other"
    write(folder / "a.txt", "some words\n")
    write(folder / "shut" / "b.txt", "more words\n")
    other.mkdir()
    (folder / "more").symlink_to(other)
    os.mkfifo(folder / "pipe.txt")
    access = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: Path(path).name != "shut" and access(path, mode)
    )
    assert [path.name for path in search.find_files([str(folder)]).skipped] == [
        "more",
        "pipe.txt",
        "shut",
    ]
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(CorpusError, match="texts cannot be read: Permission denied"):
        load_corpus(str(folder))


def test_what_is_skipped_is_named_and_counted(tmp_path, caplog):
    for name in ("a.txt", "b.log", "c.tex", "d.rs", "e/f.ndjson", "g.tsv"):
        data = (
            make_table(files.uncompressed_suffix(Path(name)), ROWS)
            if name[-3:] in ("son", "tsv")
            else "\n".join(ROWS)
        )
        write(tmp_path / name, data)
    for name in ("x.pdf", "y.docx", "e/LICENSE", ".hidden.txt", ".git/config"):
        write(tmp_path / name, "x")
    (tmp_path / "z.txt").symlink_to(tmp_path / "nowhere")
    caplog.set_level("INFO", "rung")
    corpus = load_corpus(str(tmp_path), "lines")
    assert len(texts(corpus)) == 6 * len(ROWS)
    assert corpus.notes == ("skipped 4 files: LICENSE, x.pdf and 2 more",)
    assert [record.message for record in caplog.records] == [f"{tmp_path.name}: {corpus.notes[0]}"]
    caplog.clear()
    assert load_corpus(str(tmp_path), "lines").notes == corpus.notes
    assert not caplog.records  # said once, as a climb reads its text for every rung


def test_what_was_noticed_in_reading_is_known_the_second_time(tmp_path):
    path = write(tmp_path / "a.txt", "\r".join(ROWS))
    first = load_corpus(str(path), "lines").notes
    assert first == (r"59 lone \r read as line ends: a.txt",)
    assert load_corpus(str(path), "lines").notes == first


def test_several_paths_are_one_corpus(tmp_path):
    paths = [
        str(write(tmp_path / f"{name}.txt", f"{name} one\n{name} two\n"))
        for name in ("a", "b", "c")
    ]
    corpus = load_corpus(paths, "lines")
    assert sorted(texts(corpus)) == ["a one", "a two", "b one", "b two", "c one", "c two"]
    assert corpus.name == "a.txt and 2 more"
    for same in (
        paths[::-1],
        [*paths, paths[0], f"{tmp_path}/./a.txt"],
        [f"{tmp_path}/*.txt"],
        [f"{tmp_path}"],
    ):
        assert load_corpus(same, "lines").fingerprint == corpus.fingerprint
    assert (
        load_corpus(paths[:1], whole=True).name == load_corpus(paths[0], whole=True).name == "a.txt"
    )
    for bad, message in {
        "[]": "must name a corpus",
        "[python-docs, a.txt]": "python-docs is a corpus of its own: only files, folders and globs "
        "can be joined",
        "[a.txt, nowhere.txt]": "no such file or folder: ",
    }.items():
        names = [
            name if name in ("python-docs",) else str(tmp_path / name)
            for name in bad.strip("[]").split(", ")
        ]
        with pytest.raises(CorpusError, match=message):
            load_corpus([name for name in names if name != str(tmp_path)])


def test_splits_are_said_and_a_named_file_is_that_file(tmp_path):
    for name in ("train", "valid"):
        write(tmp_path / f"{name}.txt", "".join(f"{name} {n}\n" for n in range(50)))
    write(tmp_path / "notes.pdf", "x")
    corpus = load_corpus(str(tmp_path), "lines")
    assert corpus.notes[0] == "skipped 1 file, beside the splits: notes.pdf"
    assert set(corpus.notes[1:]) == {"train: train.txt", "validation and test: valid.txt"}
    alone = load_corpus(str(tmp_path / "train.txt"), "lines")
    assert (alone.name, alone.notes) == ("train.txt", ())
    assert len(texts(alone)) == 50
    together = load_corpus([str(tmp_path / "train.txt"), str(tmp_path / "valid.txt")], "lines")
    assert together.fingerprint == corpus.fingerprint


def test_a_name_that_is_not_utf_8_is_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    write(Path(path), "\n".join(ROWS))
    corpus = load_corpus(path, "lines")
    assert corpus.name == "caf\ufffd.txt"
    assert len(texts(corpus)) == len(ROWS)
    assert load_corpus(str(tmp_path), "lines").fingerprint == corpus.fingerprint
    write(Path(path), b"\xff")
    with pytest.raises(CorpusError, match="caf\ufffd.txt is not UTF-8"):
        load_corpus(path)


def test_column_and_encoding_are_of_what_has_them(hub, tmp_path):
    write_hub(hub / "my/set", ROWS[:3], column="body")
    assert list(load_corpus("hf:my/set", column="body").test["text"]) == ROWS[:3]
    assert read_stream(load_corpus("stream:my/set", column="body")) == ROWS[:3] * SIZES["train"]
    for source, given_settings in (
        ("python-docs", {"column": "x"}),
        ("hf:my/set", {"encoding": "latin-1"}),
    ):
        with pytest.raises(CorpusError, match="needs none: leave it out"):
            load_corpus(source, **given_settings)


def test_rows_of_a_data_set_without_text_are_counted(hub):
    write_hub(hub / "my/set", [*ROWS[:2], "", " "], column="content")
    corpus = load_corpus("hf:my/set")
    assert list(corpus.test["text"]) == ROWS[:2]
    assert corpus.notes == (
        f"skipped {2 * sum(SIZES.values())} rows without text in column 'content': set",
    )
    assert load_corpus("hf:my/set").notes == corpus.notes


def test_a_data_set_with_one_held_out_split_says_so(hub):
    write_shards(hub / "my/set", ROWS, names=("train", "validation"))
    assert load_corpus("hf:my/set").notes == ("validation and test: validation",)
