"""Documents from files: nothing lost on the way, every kind read, every bad file one clear line."""

import gzip
import itertools
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.data import encoding, files
from rung.data.corpus import load_corpus
from rung.data.notes import CorpusNotes
from rung.data.store import SPLITS
from rung.errors import CorpusError
from tests.conftest import examples, make_text, write
from tests.data.conftest import ROWS, make_table, texts

ZIP = {".gz": gzip.compress, ".zst": zstandard.compress}
KINDS = [s + z for s in (*files.PROSE_SUFFIXES, ".py", *files.TABLE_SUFFIXES) for z in ("", *ZIP)]
# Newlines of three kinds, bytes of every length, and what only looks like a line end or a
# byte-order mark.
PIECES = [
    "a",
    "some words",
    "é€😀",
    " ",
    "\n",
    "\n\n",
    "\n\t\n\n",
    "\r",
    "\u2028",
    "\x0b\x85\x0c",
    "\ufeff",
]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0")
)


def read(path, documents="paragraphs", **settings):
    return list(
        files.read_documents(
            [Path(path)], files.ReadOptions(documents=documents, **settings), CorpusNotes()
        )
    )


def normalise(text):
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_suffix_is_read(tmp_path, kind):
    suffix = files.uncompressed_suffix(Path(f"rows{kind}"))
    data = make_table(suffix, ROWS) if suffix in files.TABLE_SUFFIXES else "\n".join(ROWS).encode()
    path = write(tmp_path / f"rows{kind}", ZIP.get(kind.removeprefix(suffix), bytes)(data))
    assert sorted(texts(load_corpus(str(path), "lines"))) == sorted(ROWS)


@pytest.mark.parametrize("name", ["f[1].jsonl", "f*.csv", "a b.txt", "x::y.txt", "é.parquet"])
def test_a_file_name_is_not_a_pattern(tmp_path, name):
    suffix = Path(name).suffix
    path = write(
        tmp_path / name, make_table(suffix, ["yes"]) if suffix in files.TABLE_SUFFIXES else "yes"
    )
    write(tmp_path / "f1.jsonl", make_table(".jsonl", ["no"]))
    write(tmp_path / "fx.csv", make_table(".csv", ["no"]))
    assert read(path) == ["yes"]


def test_csv_words_that_look_missing_are_words(tmp_path):
    assert read(write(tmp_path / "a.csv", "text\nNA\nnull\n\nabc\n")) == ["NA", "null", "abc"]


def test_frames_and_members_of_a_zipped_file_follow_one_another(tmp_path):
    for suffix, zipped in ZIP.items():
        assert read(
            write(tmp_path / f"a.txt{suffix}", zipped(b"ab\xe2") + zipped(b"\x82\xacc\n"))
        ) == ["ab€c\n"]


@settings(max_examples=examples(150), deadline=None)
@given(
    text=TEXTS,
    chunk=st.integers(1, 9),
    mark=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_documents_give_back_the_file(text, chunk, mark, newline):
    data = ("\ufeff" if mark else "") + text.replace("\n", newline)
    expected = normalise(data)
    small = files.Chunking(min_length=4, max_paragraph=9, one_in=2, max_line=12)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(encoding, "CHUNK_BYTES", chunk):
        path = write(Path(folder) / "a.txt", data)
        if not expected.strip():
            with pytest.raises(CorpusError, match="is empty" if not data else "contains no text"):
                read(path)
            return
        for grain in (small, files.COARSE_CHUNKING):
            documents = list(
                files.read_documents([path], files.ReadOptions(), CorpusNotes(), grain)
            )
            assert "".join(documents) == expected
            assert all(document.strip() for document in documents)
        assert read(path, "file") == [expected]
        assert read(path, "lines") == expected.removesuffix("\n").split("\n")


def test_characters_across_the_border_of_a_chunk(tmp_path):
    for shift in range(4):
        text = "x" * (encoding.CHUNK_BYTES - shift) + "😀é\r\nend"
        assert read(write(tmp_path / "a.txt", text), "file") == [text.replace("\r\n", "\n")]


def test_paragraphs_are_joined_and_stay_whole(tmp_path):
    text = make_text(400, words=30)
    documents = read(write(tmp_path / "a.txt", text))
    sizes = [len(document) for document in documents]
    assert all(document.endswith("\n\n") for document in documents[:-1])
    assert min(sizes[:-1]) >= files.COARSE_CHUNKING.min_length
    assert max(sizes) < files.MAX_DOCUMENT_LENGTH + 1_000
    assert 1_500 < len(text) / len(documents) < 4_000


def test_a_document_ends_where_no_paragraph_says_so(tmp_path):
    paragraph = next(
        f"{i} is not the end.\n\n"
        for i in range(9)
        if files.hash_to_unit_interval(f"{i} is not the end.\n\n") > 0.5
    )
    sizes = [len(document) for document in read(write(tmp_path / "a.txt", paragraph * 2000))]
    assert max(sizes) < files.MAX_DOCUMENT_LENGTH + len(paragraph)


SHORT = "A few words.\n\nAnd some more of them.\n\n" * 5
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
BAD_FILES = {
    "empty.txt": (b"", "is empty"),
    "blank.md": (b"\n \n\t\n", "contains no text"),
    "empty.jsonl": (b"", "is empty"),
    "headed.csv": (b"text\n", "contains no text"),
    "hollow.txt.gz": (gzip.compress(b""), "contains no text"),
    "nul.txt": (b"abc\xe2\x82\xac\0", "is binary, not text: it has a NUL at byte 6"),
    "png.txt": (PNG, "is binary, not text: it has a NUL at byte 8"),
    "photo.png": (PNG, "is binary, not text"),
    "latin.txt": (
        "abc é".encode("latin-1"),
        "is not UTF-8: byte 4 is 0xe9; name its encoding, as in --encoding latin-1 .*`iconv -f "
        "latin1 -t utf-8`",
    ),
    "windows.txt": (
        "“abc”".encode("cp1252"),
        "byte 0 is 0x93; .* as in --encoding cp1252 .*`iconv -f cp1252",
    ),
    "wide.txt": (
        "Some words".encode("utf-16-le"),
        "has a NUL at byte 1; if it is UTF-16, .* --encoding utf-16-le",
    ),
    "wide.csv": (
        "text\nword\n".encode("utf-16-be"),
        "has a NUL at byte 0; if it is UTF-16, .* --encoding utf-16-be",
    ),
    "latin.csv": (b"text\n\xe9\n", "is not UTF-8: byte 5 is 0xe9"),
    "chinese.txt": (
        "天地玄黄\n天地\n".encode("utf-16-le"),
        "has a NUL at byte 9; if it is UTF-16, .* --encoding utf-16-le",
    ),
    "wider.txt": (
        "Some words".encode("utf-32-be"),
        "has a NUL at byte 0; if it is UTF-32, .* --encoding utf-32-be",
    ),
    "stray.txt": (b"Some words and\0some", "is binary, not text: it has a NUL at byte 14$"),
    "half.txt": (
        "abc".encode("utf-16") + b"a",
        "is damaged: it breaks off within a character of utf-16-le, at byte 8",
    ),
    "page.txt": (
        b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
        "is not text: it is a PDF; write its text to a .txt file",
    ),
    "office.txt": (b"PK\3\4\x14", "is not text: it is a zip archive .*save its text as .txt"),
    "packed.txt": (
        gzip.compress(SHORT.encode()),
        "is not text: it is compressed by gzip; give it a name that ends in .gz",
    ),
    "latin.jsonl": (b'{"text": "\xe9"}\n', "is not UTF-8: byte 10 is 0xe9"),
    "cut.txt": ("abc€".encode()[:-1], "is not UTF-8: byte 3 is 0xe2"),
    "no.txt.gz": (b"abc", "is damaged and cannot be decompressed"),
    "no.jsonl.gz": (b"abc", "is damaged and cannot be decompressed"),
    "no.txt.zst": (b"abc", "is damaged and cannot be decompressed"),
    "cut.txt.gz": (gzip.compress(SHORT.encode())[:-9], "is damaged and cannot be decompressed"),
    "cut.txt.zst": (
        zstandard.compress(SHORT.encode())[:-5],
        "is damaged and cannot be decompressed: it breaks off",
    ),
    "bad.json": (b"{bad", "cannot be read as json: "),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "cannot be read as json: "),
    "bad.csv": (b'text,b\n"x\n', "cannot be read as csv: "),
    "bad.parquet": (b"PAR1", "cannot be read as parquet: "),
    "columns.csv": (
        b"id,body\n1,a\n",
        "has no text column: it has id, body; name the one to read with --column",
    ),
    "list.jsonl": (b'{"text": ["a"]}\n', "the column 'text' holds list, not text"),
    "short.txt": (
        SHORT,
        f"is too little text to split .*, {len(SHORT)} bytes; give at least 4,000 bytes",
    ),
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


@settings(max_examples=examples(60), deadline=None)
@given(before=TEXTS, bad=st.sampled_from([b"\xff", b"\xe2\x82", b"\0"]), chunk=st.integers(1, 9))
def test_the_byte_that_is_named_is_the_bad_one(before, bad, chunk):
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(encoding, "CHUNK_BYTES", chunk):
        path = write(Path(folder) / "a.txt", before.encode() + bad)
        with pytest.raises(CorpusError, match=rf"byte {len(before.encode())}\b"):
            read(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    for name in ("a.txt", "a.parquet"):
        path = write(tmp_path / name, "abc")
        with (
            monkeypatch.context() as patched,
            pytest.raises(CorpusError, match="cannot be read: Permission denied"),
        ):
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


def read_notes(path, documents="paragraphs", **settings):
    notes = CorpusNotes()
    found = list(
        files.read_documents([path], files.ReadOptions(documents=documents, **settings), notes)
    )
    return found, notes.lines()


MARKED = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": None}
MARKED_BIG = {"utf-16-be": b"\xfe\xff", "utf-32-be": b"\0\0\xfe\xff"}


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_a_byte_order_mark_decides_and_is_said(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_BYTES", chunk)
    text = "é€😀\nzwei\n"
    written = {name: (text.encode(name), said) for name, said in MARKED.items()}
    written |= {name: (mark + text.encode(name), name) for name, mark in MARKED_BIG.items()}
    for name, (data, said) in written.items():
        found, notes = read_notes(write(tmp_path / f"{name}.txt", data), "file")
        assert found == [text]
        assert notes == (
            [f"read as {said}, as the byte-order mark says: {name}.txt"] if said else []
        )


@pytest.mark.parametrize(
    "name", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32-be", "utf-7", "cp037"]
)
def test_an_encoding_can_be_named(tmp_path, name):
    text = "Ein schönes Café\nnoch eins\n"
    assert read(write(tmp_path / "a.txt", text.encode(name)), "file", encoding=name) == [text]
    table = '{"text": "Café"}\n'.encode(name)
    assert read(write(tmp_path / "a.jsonl.gz", gzip.compress(table)), encoding=name) == ["Café"]


@pytest.mark.parametrize("name", ["gb18030", "shift_jis", "euc-kr", "big5"])
def test_an_encoding_of_two_bytes_across_chunks(tmp_path, name, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 3)
    text = {"gb18030": "天地玄黄", "shift_jis": "いろは", "euc-kr": "한국어", "big5": "天地玄黃"}[
        name
    ] * 9
    assert read(write(tmp_path / "a.txt", text.encode(name)), "file", encoding=name) == [text]


def test_an_encoding_that_is_none_or_does_not_fit(tmp_path):
    path = write(tmp_path / "a.txt", "Café\x81 au lait".encode("latin-1"))
    for name, message in {
        "klingon": "unknown encoding 'klingon': choose from utf-8, utf-16",
        "utf-61": "unknown encoding 'utf-61': did you mean 'utf-16'",
        "base64": "unknown encoding 'base64'",
        "cp1252": "a.txt is not cp1252: byte 4 is 0x81; name its own encoding, as in --encoding "
        "latin-1",
        "utf-16": "has no byte-order mark: say which utf-16 it is, --encoding utf-16-le or "
        "--encoding utf-16-be",
    }.items():
        with pytest.raises(CorpusError, match=message):
            load_corpus(str(path), encoding=name)


def test_the_advised_encoding_reads_what_was_refused(tmp_path, prose):
    path = write(tmp_path / "a.txt", prose.replace("e", "é").encode("latin-1", "ignore"))
    with pytest.raises(CorpusError, match="--encoding latin-1"):
        load_corpus(str(path))
    assert sum(map(len, texts(load_corpus(str(path), encoding="latin-1")))) == path.stat().st_size


def test_line_ends_are_counted(tmp_path):
    assert read_notes(write(tmp_path / "a.txt", "a\rb\r\nc\n\rd\x85e\u2028".encode()), "lines") == (
        ["a", "b", "c", "", "d\x85e\u2028"],
        [r"1 line end \r\n read as \n: a.txt", r"2 lone \r read as line ends: a.txt"],
    )


@pytest.mark.parametrize("documents", ["lines", "paragraphs", "file"])
@pytest.mark.parametrize("kind", ["words", "unbroken", "chinese"])
def test_one_long_line_is_enough(tmp_path, documents, kind):
    text = make_text(1, words=50_000, between=" ").strip()[:100_000]
    text = {
        "words": text,
        "unbroken": text.replace(" ", ""),
        "chinese": text.translate({32: "，", ord("a"): "天"}),
    }[kind]
    corpus = load_corpus(str(write(tmp_path / "a.txt", text)), documents)
    found = texts(corpus)
    assert sum(map(len, found)) == len(text)
    assert all(len(corpus.split(split)) for split in SPLITS) and len(found) > 30
    assert max(map(len, found)) <= files.MAX_DOCUMENT_LENGTH + files.COARSE_CHUNKING.max_paragraph
    assert corpus.notes[0].startswith("1 text of more than ") and corpus.notes[0].endswith(
        " cut into documents: a.txt"
    )
    if kind == "words":
        assert all(document[-1] == " " for document in found if not text.endswith(document))


def test_a_long_row_of_a_table_is_cut_where_it_must_be(tmp_path):
    import json

    rows = [make_text(1, words=3000, seed=seed) * 3 for seed in range(9)]
    one = load_corpus(str(write(tmp_path / "one.jsonl", json.dumps({"text": rows[0]}))))
    assert sum(map(len, texts(one))) == len(rows[0])
    many = load_corpus(
        str(
            write(
                tmp_path / "many.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows)
            )
        )
    )
    assert sorted(texts(many)) == sorted(rows)


@settings(max_examples=examples(60), deadline=None)
@given(
    text=st.text(st.sampled_from("ab e\u0301\n😀\u200d天"), max_size=200),
    low=st.integers(1, 9),
    more=st.integers(1, 9),
)
def test_pieces_join_to_the_text_and_no_character_is_broken(text, low, more):
    pieces = list(files.cut_text(text, low, low + more))
    assert "".join(pieces) == text
    assert all(low <= len(piece) <= low + more for piece in pieces[:-1])
    for left, right in itertools.pairwise(pieces):
        if any(not files._joins(left[i : i + 2]) for i in range(low, len(left) - 1)):
            assert left[-1].isspace() or not files._joins(left[-1] + right[0])


def test_an_insertion_moves_only_the_cuts_near_it():
    text = make_text(1, words=100_000, between=" ")
    before = list(files.cut_text(text, 1000, 4000))
    after = list(files.cut_text(text[:150_000] + " something new" + text[150_000:], 1000, 4000))
    assert len(set(before) ^ set(after)) < 12
