"""What paths, folders and globs name is read once, and what is passed over is said."""

import os
import random
from pathlib import Path

import pytest

from rung import runs
from rung.data.corpus import load_corpus
from rung.data.files import save_stdin
from rung.data.store import SPLITS
from rung.errors import CorpusError
from rung.report.page import fill_page
from tests.conftest import WORDS


def write(path, lines=20):
    dice = random.Random(str(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(" ".join(dice.choices(WORDS, k=9)) + f" {path.name} {n}\n" for n in range(lines))
    )
    return path


def make_run(folder, record='{"rung": "bigram"}'):
    for name in (runs.SAMPLES, runs.METRICS, "checkpoints/checkpoint-1/README.md", "notes.txt"):
        write(folder / name)
    (folder / runs.RECORD).write_text(record)


def read_names(corpus):
    """The files that the corpus's lines are of."""
    return sorted({text.split()[-2] for split in SPLITS for text in corpus.split(split)["text"]})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two texts, in which commands are started: their runs lie there too."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt")
    write(tmp_path / "more" / "b.md")
    for name in ("bigram", "ngram"):
        make_run(tmp_path / "runs" / "mine" / name)
    (tmp_path / "runs" / "mine" / "report.html").write_text(
        fill_page("rung: mine", "<p>a report</p>")
    )
    return tmp_path


@pytest.mark.parametrize("source", [".", "*", "**", "**/*.*", "**/*"])
def test_what_rung_made_is_never_text(source, place):
    corpus = load_corpus(source, "lines")
    assert read_names(corpus) == (["a.txt"] if source == "*" else ["a.txt", "b.md"])
    if source != "*":
        said = [line for line in corpus.notes if line.startswith("skipped what")]
        assert said == [f"skipped what rung wrote: {'runs' if source == '.' else 'mine'}"]


def test_the_first_line_about_runs_stays_while_a_climb_goes_on(place):
    first = load_corpus(".", "lines")
    make_run(place / "runs" / "mine" / "rnn")
    second = load_corpus(".", "lines")
    assert second.notes == first.notes and second.fingerprint == first.fingerprint


def test_a_run_is_known_by_what_it_is(place):
    (place / "runs" / "mine" / "bigram" / runs.RECORD).write_text('{"rung": "big')  # damaged
    (place / "runs" / "mine").rename(place / "elsewhere")
    write(place / "runs" / "c.txt")
    write(place / "own" / "d.txt")
    (place / "own" / runs.RECORD).write_text('{"text": "a table of my own"}')
    corpus = load_corpus(".", "lines")
    assert read_names(corpus)[:4] == ["a.txt", "b.md", "c.txt", "d.txt"]
    assert "skipped what rung wrote: elsewhere" in corpus.notes
    for source in ("elsewhere/bigram", "elsewhere/ngram"):
        with pytest.raises(CorpusError, match="is a run, not a text: name the text itself"):
            load_corpus(source)
        with pytest.raises(CorpusError, match=r"no file matches .*\(but .*, which is not text\)"):
            load_corpus(f"{source}/*.md")
    with pytest.raises(CorpusError, match="has no file that can be read: .*; it has bigram, ngram"):
        load_corpus("elsewhere")
    assert read_names(load_corpus(f"elsewhere/bigram/{runs.SAMPLES}", "lines")) == [
        runs.SAMPLES
    ]  # it was named


def test_what_rung_keeps_of_standard_input_and_its_cache_are_no_text(place, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(place / "cache"))
    write(place / "cache" / "b.txt")
    with (place / "a.txt").open("rb") as stream:
        kept = save_stdin(stream, place / "runs")
    write(place / "stdin-0123456789ab.txt")  # only called so
    corpus = load_corpus(".", "lines")
    assert read_names(corpus) == ["a.txt", "b.md", "stdin-0123456789ab.txt"]
    assert corpus.notes == ("skipped what rung wrote: cache, runs",)
    assert read_names(load_corpus(str(kept), "lines")) == ["a.txt"]


def test_links_that_lead_back_are_followed_nowhere(tmp_path):
    """Two of them make 2 ** 40 ways to a file; of one there are 41."""
    write(tmp_path / "texts" / "a.txt")
    write(tmp_path / "texts" / "deep" / "b.txt")
    write(tmp_path / "other" / "c.txt")
    for name in ("loop", "again"):
        (tmp_path / "texts" / "deep" / name).symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "other").symlink_to(tmp_path / "other")
    for source in ("texts", "texts/**", "texts/**/*.txt", "text*/**/*.txt"):
        corpus = load_corpus(str(tmp_path / source), "lines")
        assert read_names(corpus) == ["a.txt", "b.txt"]
        assert sum(len(corpus.split(split)) for split in SPLITS) == 40
        assert corpus.notes == (
            "skipped 3 linked folders (name a link to read it): again, loop and other",
        ) or (
            corpus.notes
            == ("skipped 3 linked folders (name a link to read it): again, loop, other",)
        )
    for source in (["texts", "texts/other"], ["texts/**/*.txt", "texts/*/*.txt"]):
        corpus = load_corpus([str(tmp_path / each) for each in source], "lines")
        assert read_names(corpus) == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize("source", ["texts", "texts/**/*.txt"])
def test_a_folder_that_may_not_be_read_is_said(source, tmp_path, monkeypatch):
    write(tmp_path / "texts" / "a.txt")
    write(tmp_path / "texts" / "shut" / "b.txt")
    access = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: Path(path).name != "shut" and access(path, mode)
    )
    corpus = load_corpus(str(tmp_path / source), "lines")
    assert read_names(corpus) == ["a.txt"]
    assert corpus.notes == ("skipped 1 folder without read permission: shut",)


def test_notes_called_train_and_test_are_notes_like_the_others(tmp_path):
    for name in ("train", "test", "plane", "bus", "boat", "walk"):
        write(tmp_path / f"{name}.md")
    corpus = load_corpus(str(tmp_path), "lines")
    assert len(read_names(corpus)) == 6 and corpus.is_auto_split
    assert corpus.notes == ("read like the other files, not as a split: test.md, train.md",)
    paths = [str(path) for path in tmp_path.iterdir()]
    assert load_corpus(paths, "lines").notes == corpus.notes


@pytest.mark.parametrize(
    "beside", [["README.txt", "vocabulary.txt"], ["a.md", "b.md", "c.md", "d.md"]]
)
def test_two_splits_beside_few_others_are_splits_and_say_what_they_leave(beside, tmp_path):
    for name in ("train.txt", "test.txt", *beside):
        write(tmp_path / name)
    corpus = load_corpus(str(tmp_path), "lines")
    assert read_names(corpus) == ["test.txt", "train.txt"] and not corpus.is_auto_split
    assert corpus.notes[0].startswith(f"skipped {len(beside)} files, beside the splits: ")


def test_three_splits_and_folders_called_so_are_splits_whatever_stands_beside(tmp_path):
    for name in ("a", "b", "c", "d", "e", "f"):
        write(tmp_path / "files" / f"{name}.txt")
        write(tmp_path / "folders" / f"{name}.txt")
    for name in ("train", "valid", "test"):
        write(tmp_path / "files" / f"{name}.txt")
    write(tmp_path / "linked" / "x.txt")
    (tmp_path / "folders" / "train").symlink_to(tmp_path / "linked")
    write(tmp_path / "folders" / "test" / "y.txt")
    make_run(tmp_path / "folders" / "runs" / "mine")
    assert read_names(load_corpus(str(tmp_path / "files"), "lines")) == [
        "test.txt",
        "train.txt",
        "valid.txt",
    ]
    corpus = load_corpus(str(tmp_path / "folders"), "lines")
    assert read_names(corpus) == ["x.txt", "y.txt"]
    assert "skipped what rung wrote: runs" in corpus.notes
