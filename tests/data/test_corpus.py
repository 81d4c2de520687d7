"""Loading a corpus: its splits, its name, its notes, and the same the second time."""

import gzip
import os
from pathlib import Path

import pytest

from rung.data import files, search, store
from rung.data.corpus import load_corpus
from rung.data.store import SPLITS
from rung.errors import CorpusError
from tests.conftest import make_text, write
from tests.data.conftest import ROWS, SIZES, make_table, read_stream, texts, write_hub, write_shards


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


def test_a_sample_is_from_all_over_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(
        store, "READ_BATCH_BYTES", 1000
    )  # many reads, none of them a multiple of the stride
    corpus = load_corpus(str(write(tmp_path / "a.txt", "\n".join(map(str, range(3000))))), "lines")
    train = list(corpus.train["text"])
    for stride in (1, 2, 7, 5000):
        assert list(corpus.sample_train(stride)) == train[::stride]


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
