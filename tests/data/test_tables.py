"""Tables in files: only the text column is read, as it is written, and no row is lost or moved
without a word.
"""

import csv
import gzip
import io
import json

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.data import files
from rung.data.corpus import load_corpus
from rung.data.notes import CorpusNotes
from rung.errors import CorpusError
from tests.conftest import examples, write
from tests.data.conftest import texts


def read(path, notes=None, **settings):
    return list(
        files.read_documents(
            [path], files.ReadOptions(**settings), CorpusNotes() if notes is None else notes
        )
    )


def read_notes(path, **settings):
    notes = CorpusNotes()
    return read(path, notes, **settings), notes.lines()


CSV = {
    "commas": ('text,id\n"one, two",1\nthree,2\n', ["one, two", "three"]),
    "quotes": ('id,text\n1,"he said ""no"""\n2,5" of it\n', ['he said "no"', '5" of it']),
    "lines": ('text,id\r\n"one\ntwo\r\nthree",1\r\nfour,2\r\n', ["one\ntwo\r\nthree", "four"]),
    "returns": ("text,id\rone,1\rtwo,2\r", ["one", "two"]),
    "mark": ("\ufefftext,id\none,1\n", ["one"]),
    "blank": ('\n\ntext,id\none,1\n\n"",2\n  ,3\ntwo,4\n\n', ["one", "two"]),
    "numbers": (
        "text\n007\n1e5\n1_000\nNaN\nnull\nNA\nTrue\n123456789012345678901234567890\n",
        None,
    ),
    "unicode": ("text\na\u2028b\nc\x85d\ne\x0bf\n", ["a\u2028b", "c\x85d", "e\x0bf"]),
    "long": (f'text,id\n"{"word, " * 200_000}",1\n', ["word, " * 200_000]),
}


@pytest.mark.parametrize("name", list(CSV))
def test_csv_is_read_as_it_is_written(tmp_path, name):
    data, expected = CSV[name]
    assert read(write(tmp_path / "a.csv", data)) == (expected or data.split("\n")[1:-1])


@settings(max_examples=examples(60), deadline=None)
@given(
    rows=st.lists(st.text(st.sampled_from('ab,;"\n\r\t é'), max_size=9), min_size=1),
    tab=st.booleans(),
)
def test_what_was_written_as_csv_comes_back(tmp_path_factory, rows, tab):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t" if tab else ",")
    writer.writerows([["id", "text", "x,"], *([n, row, "y"] for n, row in enumerate(rows))])
    path = write(tmp_path_factory.mktemp("csv") / ("a.tsv" if tab else "a.csv"), out.getvalue())
    expected = [row for row in rows if row.strip()]
    if expected:
        assert read(path) == expected


BAD_TABLES = {
    "wide.csv": (
        "text,source\none, two,web\nthree,web\n",
        r"line 2: the row has 3 columns and the first line 2",
    ),
    "trail.csv": ("text,source\none,web\ntwo,web,\n", r"line 3: the row has 3 columns"),
    "narrow.csv": (
        'text,source\n"one\ntwo",web\nthree\n',
        r"line 4: the row has 1 column and the first line 2",
    ),
    "commas.csv": (
        "text\none, two, three\n",
        r"line 2: the row has 3 columns and the first line 1 \(text\)",
    ),
    "open.csv": (
        'text,id\none,1\n"two,2\nthree,3\n',
        r"line 3: .* a quote is opened and not closed",
    ),
    "torn.csv": (
        'text,id\none,1\n"Hello" he said,2\n',
        r"line 3: cannot be read as csv: .* a value with a quote",
    ),
    "semi.csv": (
        "text;id\none;1\n",
        r"the delimiter of its columns seems to be ';', not ',' as in .csv.*write it",
    ),
    "mixed.csv": ("id;text;a, b\n1;one;2\n", r"the delimiter of its columns seems to be ';'"),
    "pipe.csv": ("id|text\n1|one\n", r"the delimiter of its columns seems to be '\|'"),
    "tab.csv": (
        "id\ttext\n1\tone\n",
        r"the delimiter of its columns seems to be a tab.*rename it to .tsv",
    ),
    "comma.tsv": (
        "id,text\n1,one\n",
        r"the delimiter of its columns seems to be ','.*rename it to .csv",
    ),
    "headless.csv": (
        "one word,1\ntwo words,2\n",
        r"has no text column: it has one word, 1; name .* with --column",
    ),
    "twice.csv": ("text,text\none,two\n", "has 2 columns called 'text': rename all but one"),
    "cut.jsonl": (
        '{"text": "one"}\n{"text": "tw',
        r"line 2: cannot be read as json: Unterminated string",
    ),
    "two.jsonl": (
        '{"text": "one"} {"text": "two"}\n',
        r"line 1: cannot be read as json: Extra data",
    ),
    "list.jsonl": ('{"text": "one"}\n[1]\n', r"line 2: must be an object, not list"),
    "bool.jsonl": (
        '{"text": "one"}\n\n{"text": true}\n',
        r"line 3: the column 'text' holds bool, not text: True",
    ),
    "object.jsonl": ('{"text": {"a": 1}}\n', r"line 1: the column 'text' holds dict, not text"),
    "half.jsonl": ('{"text": "\\ud83d"}\n', r"line 1: the column 'text' holds half a character"),
    "deep.jsonl": ('{"text": "one", "x": ' + "[" * 100_000, r"line 1: cannot be read as json"),
    "none.jsonl": (
        '{"id": 1}\n{"body": "one"}\n',
        r"has no text column: it has id, body; name .* with --column",
    ),
    "none.json": ('{"id": 1,\n "body": "one"}\n', r"has no text column: it has id, body"),
    "array.json": (
        '[{"text": "one"},\n {"text": 2.5}, {"text": []}]',
        r"row 3: the column 'text' holds list, not text",
    ),
}


@pytest.mark.parametrize("name", list(BAD_TABLES))
def test_a_table_that_does_not_fit_is_refused(tmp_path, name):
    data, message = BAD_TABLES[name]
    path = write(tmp_path / name, data)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_remedy_for_another_delimiter_works(tmp_path):
    import shlex
    import subprocess

    write(tmp_path / "IN.csv", 'id;text\n1;"one; two, three"\n2;four\n')
    with pytest.raises(CorpusError) as caught:
        read(tmp_path / "IN.csv")
    command = str(caught.value).partition("write it with commas: ")[2]
    assert shlex.split(command)[0] == "python3"
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert read(tmp_path / "OUT.csv") == ["one; two, three", "four"]


JSON = {
    "numbers": (
        '{"text": 7}\n{"text": 1e5}\n{"text": 123456789012345678901234567890}\n',
        ["7", "1e5", None],
    ),
    "array": (
        '[{"text": "one"}, {"text": null}, {"text": "two", "id": {"a": [1]}}]',
        ["one", "two"],
    ),
    "strings": ('["one", "two"]', ["one", "two"]),
    "pretty": ('{\n  "text": "one"\n}\n', ["one"]),
    "mark": ('\ufeff{"text": "one"}\r\n{"text": "two"}\r\n', ["one", "two"]),
    "blank": (
        '\n{"text": "one"}\n\n{"text": "  "}\n{"id": 1}\n{"text": NaN}\n{"text": "two"}',
        ["one", "two"],
    ),
    "unicode": ('{"text": "a\u2028b\x85c\\nd\\r"}\n', ["a\u2028b\x85c\nd\r"]),
    "huge": ('{"id": ' + "9" * 5000 + ', "text": "one"}\n', ["one"]),
    "late": ('{"id": 1}\n{"text": "one"}\n', ["one"]),
}


@pytest.mark.parametrize("name", list(JSON))
def test_json_is_read_as_it_is_written(tmp_path, name):
    data, expected = JSON[name]
    expected = ["123456789012345678901234567890" if text is None else text for text in expected]
    assert read(write(tmp_path / "a.json", data)) == expected
    if name != "pretty":
        assert read(write(tmp_path / "a.jsonl", data)) == expected


OTHERS = [
    [None, {"a": 1}],
    [1, "x"],
    ["2020-01-01T00:00:00", "unknown"],
    [{"a": 1}, "s"],
    [[1], {"b": None}],
]


@pytest.mark.parametrize("other", OTHERS)
def test_other_columns_may_hold_what_they_like(tmp_path, other):
    """`datasets` casts every column to what its first 10 MB hold (datasets#7222, #6162, #3965)."""
    rows = [{"text": f"row {n}", "other": other[n // 15000], "text_id": n} for n in range(30_000)]
    rows[20_000]["more"] = [1]
    path = write(tmp_path / "a.ndjson", "".join(json.dumps(row) + "\n" for row in rows))
    assert read(path) == [row["text"] for row in rows]


def test_rows_without_text_are_counted(tmp_path):
    for column in ("text", "content", "body"):
        rows = [{"id": 0}] + [{column: None}] * 50 + [{column: "one"}, {"id": 1}, {column: ""}]
        path = write(tmp_path / f"{column}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        named = {"column": column} if column == "body" else {}
        said = f"skipped 53 rows without text in column {column!r}: {column}.jsonl"
        assert read_notes(path, **named) == (["one"], [said])
    said = "skipped 1 row without text in column 'content': a"
    assert read_notes(write(tmp_path / "a.csv", 'content,id\none,1\n"",2\n')) == (
        ["one"],
        [f"{said}.csv"],
    )
    path = write_parquet(tmp_path / "a.parquet", content=(["one", None],))
    assert read_notes(path) == (["one"], [f"{said}.parquet"])
    assert read_notes(write(tmp_path / "a.json", '["one", " "]')) == (
        ["one"],
        ["skipped 1 row without text: a.json"],
    )


def test_numbers_that_are_read_as_text_are_counted(tmp_path):
    found = read_notes(write(tmp_path / "a.jsonl", '{"text": 5}\n{"text": "6"}\n{"text": 1e5}\n'))
    assert found == (["5", "6", "1e5"], ["2 numbers in column 'text' read as digits: a.jsonl"])


def test_a_column_and_an_encoding_are_of_files_that_have_them(tmp_path):
    prose = "\n\n".join(f"paragraph {n} " * 20 for n in range(60))
    plain = write(tmp_path / "a.txt", prose)
    table = write(
        tmp_path / "b.jsonl", "".join(json.dumps({"body": f"row {n}"}) + "\n" for n in range(60))
    )
    parquet = write_parquet(tmp_path / "c.parquet", text=([f"row {n}" for n in range(60)],))
    with pytest.raises(
        CorpusError,
        match="--column is 'body', but does not apply to a.txt: plain text has no columns",
    ):
        load_corpus(str(plain), column="body")
    with pytest.raises(
        CorpusError,
        match="--encoding is 'cp1252', but does not apply to c.parquet: Parquet",
    ):
        load_corpus(str(parquet), encoding="cp1252")
    assert (
        "--column does not apply to 1 file: a.txt"
        in load_corpus([str(plain), str(table)], column="body").notes
    )
    assert (
        "--encoding does not apply to 1 file: c.parquet"
        in load_corpus([str(plain), str(parquet)], encoding="cp1252").notes
    )
    write(tmp_path / "named/train.jsonl", table.read_bytes())
    write(tmp_path / "named/test.txt", prose)
    assert (
        "--column does not apply to 1 file: test.txt"
        in load_corpus(str(tmp_path / "named"), column="body").notes
    )


def write_parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: pyarrow.array(*given) for name, given in columns.items()})
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("zipped", ["", ".gz", ".zst"])
def test_parquet_is_read_by_its_text_column(tmp_path, zipped):
    import pyarrow

    rows = [f"row {n}" for n in range(1000)]
    kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    for name, given_rows in {
        "plain": (rows,),
        "encoded": (rows, kind),
        "large": (rows, pyarrow.large_string()),
    }.items():
        path = write_parquet(
            tmp_path / f"{name}.parquet",
            id=(range(1000),),
            text=given_rows,
            blob=([b"\xff"] * 1000,),
        )
        if zipped:
            data = (gzip.compress if zipped == ".gz" else zstandard.compress)(path.read_bytes())
            path = write(tmp_path / f"{name}.parquet{zipped}", data)
        assert read(path) == rows


def test_an_empty_part_is_passed_over(tmp_path):
    import pyarrow

    write_parquet(tmp_path / "part-0.parquet", text=([f"row {n}" for n in range(30)],))
    write_parquet(tmp_path / "part-1.parquet", text=([], pyarrow.string()))
    write_parquet(tmp_path / "part-2.parquet", other=([], pyarrow.int64()))
    write(tmp_path / "part-3.parquet", b"")
    corpus = load_corpus(str(tmp_path))
    assert len(texts(corpus)) == 30
    assert corpus.notes == (
        "skipped 3 files without text: part-1.parquet, part-2.parquet, part-3.parquet",
    )


def test_parquet_of_numbers_and_of_what_is_no_text(tmp_path):
    found = read_notes(write_parquet(tmp_path / "a.parquet", text=([7, None, 12],)))
    assert found[0] == ["7", "12"]
    assert found[1][0] == "column 'text' holds int64: read as digits: a.parquet"
    for kind, rows in {
        "double": [1.5],
        "binary": [b"one"],
        "list": [["one"]],
        "struct": [{"a": 1}],
    }.items():
        with pytest.raises(
            CorpusError, match=f"the column 'text' holds {kind}.*, not text; --column names another"
        ):
            read(write_parquet(tmp_path / "b.parquet", text=(rows,)))


def test_a_parquet_column_with_a_dot_in_its_name_is_not_one_within_another(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", **{"text": ([{"a": "no"}],), "text.a": (["yes"],)})
    assert list(load_corpus(str(path), column="text.a", held_out=0).train["text"]) == ["yes"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_can_be_named_and_the_choice_is_said(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    columns = {"content": ["one"], "text": ["two"], "body": ["three"]}
    if suffix == ".parquet":
        write_parquet(path, **{name: (rows,) for name, rows in columns.items()})
    elif suffix == ".csv":
        write(path, "content,text,body\none,two,three\n")
    else:
        write(path, json.dumps({name: rows[0] for name, rows in columns.items()}) + "\n")
    assert read_notes(path) == (
        ["two"],
        [f"column 'text' is read, and not content (--column chooses): a{suffix}"],
    )
    assert read_notes(path, column="body") == (["three"], [])
    with pytest.raises(CorpusError, match=r"has no column 'title': it has content, text, body"):
        read(path, column="title")


def test_a_table_of_settings_in_a_folder_is_passed_over_and_others_are_refused(tmp_path):
    write(tmp_path / "a.txt", "\n".join(map(str, range(30))))
    write(tmp_path / "package.json", '{"name": "x"}\n')
    assert load_corpus(str(tmp_path), "lines").notes == (
        "skipped 1 file without a text column: package.json",
    )
    write(tmp_path / "rows.jsonl", '{"name": "x"}\n')
    with pytest.raises(CorpusError, match=r"rows.jsonl has no text column: it has name"):
        load_corpus(str(tmp_path), "lines")
