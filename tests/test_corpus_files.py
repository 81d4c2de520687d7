"""Documents from files: nothing lost on the way, every kind read, every bad file one clear line."""

import gzip
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_corpus import ROWS, make_table, make_text, texts, write

from rung.corpus import SPLITS, files, load_corpus
from rung.errors import CorpusError

ZIP = {".gz": gzip.compress, ".zst": zstandard.compress}
KINDS = [s + z for s in (*files.TEXT_SUFFIXES, *files.TABLE_READERS) for z in ("", *ZIP) if s != ".parquet" or not z]
# Newlines of three kinds, bytes of every length, and what only looks like a line end or a byte-order mark.
PIECES = ["a", "some words", "é€😀", " ", "\n", "\n\n", "\n\t\n\n", "\r", "\u2028", "\x0b\x85\x0c", "\ufeff"]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join) | st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def read(path, documents="paragraphs"):
    return list(files.read_documents([Path(path)], documents))


def normalise(text):
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_suffix_is_read(tmp_path, kind):
    suffix = files.kind_suffix(Path(f"rows{kind}"))
    data = make_table(suffix, ROWS) if suffix in files.TABLE_READERS else "\n".join(ROWS).encode()
    path = write(tmp_path / f"rows{kind}", ZIP.get(kind.removeprefix(suffix), bytes)(data))
    assert sorted(texts(load_corpus(str(path), "lines"))) == sorted(ROWS)


@pytest.mark.parametrize("name", ["f[1].jsonl", "f*.csv", "a b.txt", "x::y.txt", "é.parquet"])
def test_a_file_name_is_not_a_pattern(tmp_path, name):
    suffix = Path(name).suffix
    path = write(tmp_path / name, make_table(suffix, ["yes"]) if suffix in files.TABLE_READERS else "yes")
    write(tmp_path / "f1.jsonl", make_table(".jsonl", ["no"]))
    write(tmp_path / "fx.csv", make_table(".csv", ["no"]))
    assert read(path) == ["yes"]


def test_csv_words_that_look_missing_are_words(tmp_path):
    assert read(write(tmp_path / "a.csv", "text\nNA\nnull\n\nabc\n")) == ["NA", "null", "abc"]


def test_frames_and_members_of_a_zipped_file_follow_one_another(tmp_path):
    for suffix, zipped in ZIP.items():
        assert read(write(tmp_path / f"a.txt{suffix}", zipped(b"ab\xe2") + zipped(b"\x82\xacc\n"))) == ["ab€c\n"]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, chunk=st.integers(1, 9), mark=st.booleans(), newline=st.sampled_from(["\n", "\r\n", "\r"]))
def test_documents_give_back_the_file(text, chunk, mark, newline):
    data = ("\ufeff" if mark else "") + text.replace("\n", newline)
    expected = normalise(data)
    small = files.Grain(shortest=4, longest_paragraph=9, one_in=2)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(files, "CHUNK_BYTES", chunk):
        path = write(Path(folder) / "a.txt", data)
        if not expected.strip():
            with pytest.raises(CorpusError, match="is empty" if not data else "holds too little text: none at all"):
                read(path)
            return
        for grain in (small, files.COARSE):
            documents = list(files.read_documents([path], "paragraphs", grain))
            assert "".join(documents) == expected
            assert all(document.strip() for document in documents)
        assert read(path, "file") == [expected]
        assert read(path, "lines") == [line for line in expected.split("\n") if line.strip()]


def test_characters_across_the_border_of_a_chunk(tmp_path):
    for shift in range(4):
        text = "x" * (files.CHUNK_BYTES - shift) + "😀é\r\nend"
        assert read(write(tmp_path / "a.txt", text), "file") == [text.replace("\r\n", "\n")]


def test_paragraphs_are_joined_and_stay_whole(tmp_path):
    text = make_text(400, words=30)
    documents = read(write(tmp_path / "a.txt", text))
    sizes = [len(document) for document in documents]
    assert all(document.endswith("\n\n") for document in documents[:-1])
    assert min(sizes[:-1]) >= files.COARSE.shortest
    assert max(sizes) < files.LONGEST_DOCUMENT + 1_000
    assert 1_500 < len(text) / len(documents) < 4_000


def test_a_document_ends_where_no_paragraph_says_so(tmp_path):
    paragraph = next(f"{i} is not the end.\n\n" for i in range(9) if files.hash_unit(f"{i} is not the end.\n\n") > 0.5)
    sizes = [len(document) for document in read(write(tmp_path / "a.txt", paragraph * 2000))]
    assert max(sizes) < files.LONGEST_DOCUMENT + len(paragraph)


SHORT = "A few words.\n\nAnd some more of them.\n\n" * 5
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
BAD_FILES = {
    "empty.txt": (b"", "is empty"),
    "blank.md": (b"\n \n\t\n", "holds too little text: none at all"),
    "empty.jsonl": (b"", "is empty"),
    "headed.csv": (b"text\n", "holds too little text: none at all"),
    "hollow.txt.gz": (gzip.compress(b""), "holds too little text: none at all"),
    "nul.txt": (b"abc\xe2\x82\xac\0", "is binary, not text: it has a NUL at byte 6"),
    "png.txt": (PNG, "is binary, not text: it has a NUL at byte 8"),
    "zipped.txt": (gzip.compress(b"abc"), "is binary, not text"),
    "photo.png": (PNG, "is binary, not text"),
    "latin.txt": ("abc é".encode("latin-1"), "is not UTF-8: byte 4 is 0xe9; convert it with `iconv -t utf-8`"),
    "latin.csv": (b"text\n\xe9\n", "is not UTF-8: byte 5 is 0xe9"),
    "latin.jsonl": (b'{"text": "\xe9"}\n', "is not UTF-8: byte 10 is 0xe9"),
    "cut.txt": ("abc€".encode()[:-1], "is not UTF-8: byte 3 is 0xe2"),
    "no.txt.gz": (b"abc", "is damaged and cannot be unzipped"),
    "no.jsonl.gz": (b"abc", "is damaged and cannot be unzipped"),
    "no.txt.zst": (b"abc", "is damaged and cannot be unzipped"),
    "cut.txt.gz": (gzip.compress(SHORT.encode())[:-9], "is damaged and cannot be unzipped"),
    "cut.txt.zst": (zstandard.compress(SHORT.encode())[:-5], "is damaged and cannot be unzipped: it breaks off"),
    "bad.json": (b"{bad", "cannot be read as json: "),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "cannot be read as json: "),
    "bad.csv": (b'text,b\n"x\n', "cannot be read as csv: "),
    "bad.parquet": (b"PAR1", "cannot be read as parquet: "),
    "columns.csv": (b"id,body\n1,a\n", "has no text column: it has id, body; rename one of them to 'text'"),
    "numbers.csv": (b"text\n12\n", "the column 'text' holds int, not text: 12"),
    "list.jsonl": (b'{"text": ["a"]}\n', "the column 'text' holds list, not text"),
    "short.txt": (SHORT, f"is too little text to split .*, {len(SHORT)} bytes; give at least 4,000 bytes"),
    "line.txt": ("words " * 4000, "is too little text to split .* 1 document, 24,000 bytes; .* blank lines"),
    "twins.txt": ("the same\n\n" * 4000, "is too little text to split"),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
def test_a_bad_file_is_one_clear_line(tmp_path, name, caplog):
    data, message = BAD_FILES[name]
    path = write(tmp_path / name, data)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caplog.records  # nothing else is said


@settings(max_examples=60, deadline=None)
@given(before=TEXTS, bad=st.sampled_from([b"\xff", b"\xe2\x82", b"\0"]), chunk=st.integers(1, 9))
def test_the_byte_that_is_named_is_the_bad_one(before, bad, chunk):
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(files, "CHUNK_BYTES", chunk):
        path = write(Path(folder) / "a.txt", before.encode() + bad)
        with pytest.raises(CorpusError, match=rf"byte {len(before.encode())}\b"):
            read(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    for name in ("a.txt", "a.parquet"):
        path = write(tmp_path / name, "abc")
        with monkeypatch.context() as patched, pytest.raises(CorpusError, match="cannot be read: Permission denied"):
            patched.setattr(Path, "open", refuse)
            load_corpus(str(path))


@pytest.mark.parametrize("size", [4_000, 20_000])
@pytest.mark.parametrize("kind", ["prose", "short", "long", "unbroken"])
def test_a_few_pages_are_enough(tmp_path, prose, size, kind):
    text = {
        "prose": prose,
        "short": make_text(2000, words=8),
        "long": make_text(20, words=size // 12),
        "unbroken": make_text(2000, between="\n", words=8),
    }[kind][:size]
    corpus = load_corpus(str(write(tmp_path / "my.txt", text)))
    assert all(len(corpus.split(split)) for split in SPLITS)
    assert sum(map(len, texts(corpus))) == len(text)
