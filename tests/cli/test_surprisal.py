"""`rung surprisal`: a row a word, from a text or a table, as a table of tabs."""

import csv
import io
import json

import pytest

import rung as library
from rung.evaluation.surprisal import score_text
from tests.conftest import make_text
from tests.conftest import run_rung as rung
from tests.models.foreign import build


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with an n-gram model of byte pairs, one of words, and a text."""
    folder = tmp_path_factory.mktemp("surprisal")
    (folder / "my.txt").write_text(make_text(40))
    (folder / "text.txt").write_text("the of and\n\nto zebra in\n")
    for name, kind in (("pairs", "bpe"), ("words", "whitespace")):
        made = rung("train", "ngram", "my.txt", "--tokenizer", kind, "--out", name, cwd=folder)
        assert made.returncode == 0, made.stderr
    return folder


def read(ground, *words):
    made = rung("surprisal", *words, cwd=ground)
    assert made.returncode == 0, made.stderr
    return list(csv.DictReader(io.StringIO(made.stdout), delimiter="\t", strict=True))


def test_a_row_a_word_with_all_that_was_asked_for(ground):
    rows = read(ground, "pairs", "text.txt", "--uncorrected")
    assert [*rows[0]] == [
        *("document", "position", "word", "bits", "uncorrected", "tokens", "context"),
        *("unknown", "order", "count"),
    ]
    assert [row["word"] for row in rows] == ["the", "of", "and", "to", "zebra", "in"]
    assert [row["position"] for row in rows] == list("012345")
    assert all(row["bits"] != row["uncorrected"] for row in rows)
    run = library.load(ground / "pairs")
    pieces = score_text(run.model, run.tokenizer, "the of and\n\nto zebra in\n")
    total = sum(piece.bits for piece in pieces[:-2])
    assert sum(float(row["uncorrected"]) for row in rows) == pytest.approx(total, rel=1e-5)


def test_lines_are_documents_of_their_own(ground):
    rows = read(ground, "pairs", "text.txt", "--documents", "lines")
    assert [(row["document"], row["position"]) for row in rows] == [
        *(("0", "0"), ("0", "1"), ("0", "2"), ("2", "0"), ("2", "1"), ("2", "2")),
    ]


@pytest.mark.parametrize("name", ["words.csv", "words.tsv", "words.jsonl"])
def test_the_rows_of_a_table_are_the_words(ground, name):
    """The table's rows and those of the result are in the same order, and as many."""
    words = ["the", "of", 'and "so"', "to", "zebra", "in"]
    if name.endswith("jsonl"):
        table = "\n".join(json.dumps({"item": 1, "w": word}) for word in words)
    else:
        lines = io.StringIO()
        csv.writer(lines, delimiter="," if name.endswith("csv") else "\t").writerows(
            [["item", "w"], *([1, word] for word in words)]
        )
        table = lines.getvalue()
    (ground / name).write_text(table)
    rows = read(ground, "pairs", name, "--column", "w")
    assert [row["word"] for row in rows] == words
    (ground / "same.txt").write_text(" ".join(words))
    plain = read(ground, "pairs", "same.txt")
    by_hand = [float(row["bits"]) for row in plain]
    by_hand[2:4] = [sum(by_hand[2:4])]
    assert [float(row["bits"]) for row in rows] == pytest.approx(by_hand)


def test_the_table_goes_to_a_file_or_to_json_or_comes_from_a_pipe(ground):
    rows = read(ground, "words", "text.txt")
    made = rung("surprisal", "words", "text.txt", "--out", "out.tsv", cwd=ground)
    assert (made.returncode, made.stdout) == (0, "")
    assert "Wrote out.tsv: " in made.stderr and "bits each on average" in made.stderr
    assert made.stderr.endswith(" rung eval words text.txt\n")
    assert list(csv.DictReader((ground / "out.tsv").open(), delimiter="\t")) == rows
    found = json.loads(rung("surprisal", "words", "text.txt", "--json", cwd=ground).stdout)
    assert [word["word"] for word in found["words"]] == [row["word"] for row in rows]
    piped = rung("surprisal", "words", "-", cwd=ground, pipe="the of and\n\nto zebra in\n")
    assert list(csv.DictReader(io.StringIO(piped.stdout), delimiter="\t")) == rows


def test_what_the_figures_do_not_show_is_said(ground):
    made = rung("surprisal", "words", "text.txt", cwd=ground)
    assert "no token begins with white space, so nothing is corrected" in made.stderr
    assert "1 unknown word, charged for the spelling" in made.stderr
    rows = list(csv.DictReader(io.StringIO(made.stdout), delimiter="\t"))
    assert [row["unknown"] for row in rows] == list("000010")
    (ground / "chinese.txt").write_text("语言模型给每个词一个概率语言模型给每个词一个概率。")
    made = rung("surprisal", "pairs", "chinese.txt", cwd=ground)
    assert made.returncode == 0 and len(made.stdout.splitlines()) == 2
    assert "next to no white space; cut it into words" in made.stderr


def test_the_model_is_loaded_as_the_options_say(ground, tokenizer):
    folder = ground / "neox"
    build("gpt_neox", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plain, short = (
        read(ground, "neox", "my.txt", *options)
        for options in ((), ("--window", 8, "--dtype", "bfloat16", "--trust-remote-code"))
    )
    assert max(int(row["context"]) for row in short) <= 8
    assert max(int(row["context"]) for row in plain) > 8
    made = rung("surprisal", "pairs", "text.txt", "--window", 8, cwd=ground)
    assert made.returncode == 2 and "has no window: leave --window out" in made.stderr


def test_the_library_gives_the_same(ground, monkeypatch):
    monkeypatch.chdir(ground)
    found = library.surprisal("pairs", "text.txt")
    rows = read(ground, "pairs", "text.txt")
    assert [score.bits for score in found] == [float(row["bits"]) for row in rows]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["none.txt"], "no such file: none.txt"),
        (["empty.txt"], "empty.txt is empty"),
        (["blank.txt"], "blank.txt has no words"),
        (["binary.txt"], "binary.txt"),
        (["."], "is a folder"),
        (["text.txt", "--column", "w"], "plain text has no columns"),
        (["text.txt", "--documents", "line"], "did you mean 'lines'"),
        (["text.txt", "--out", "no/out.tsv"], "no is no folder"),
        (["text.txt", "--out", "pairs"], "pairs is a folder"),
        (["text.txt", "--out", "text.txt"], "text.txt is the file that is read"),
        (["t.csv"], "name the column that has its words"),
        (["t.csv", "--column", "x"], "t.csv has no column 'x': it has item, w"),
        (["t.csv", "--column", "w"], "row 2 has no word in column 'w'"),
        (["t.csv", "--column", "w", "--documents", "lines"], "a table of words is one document"),
        (["header.csv", "--column", "w"], "header.csv has no words"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(ground, words, reason):
    (ground / "empty.txt").write_text("")
    (ground / "blank.txt").write_text(" \n ")
    (ground / "binary.txt").write_bytes(bytes(range(256)) * 8)
    (ground / "t.csv").write_text("item,w\n1,the\n2,\n")
    (ground / "header.csv").write_text("item,w\n")
    before = sorted(ground.rglob("*"))
    made = rung("surprisal", "pairs", *words, "--quiet", cwd=ground)
    assert (made.returncode, made.stdout) == (2, "")
    assert reason in made.stderr and made.stderr.count("\n") == 1
    assert sorted(ground.rglob("*")) == before
