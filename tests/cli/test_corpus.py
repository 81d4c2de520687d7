"""How the command is told which text to read: paths, standard input, column, encoding, names that
are not UTF-8.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rung import runs
from rung.chat.conversations import load_conversations
from rung.errors import CorpusError
from tests.conftest import make_text, run_rung, write


def rung(*args, cwd, pipe=None):
    """The command in this process: exit code, standard output, standard error."""
    made = run_rung(*args, cwd=cwd, pipe=pipe)
    return made.returncode, made.stdout, made.stderr


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with two texts, and a bigram of both."""
    folder = tmp_path_factory.mktemp("ground")
    for seed, name in enumerate(("a", "b")):
        write(folder / f"{name}.txt", make_text(60, seed=seed))
    code, _, said = rung("train", "bigram", "a.txt", "b.txt", cwd=folder)
    assert code == 0, said
    return folder


def recipe_of(folder):
    return runs.read_record(folder)["recipe"]


def test_several_paths_are_recorded_and_scored_again(ground):
    folder = ground / "runs/a-and-1-more-bigram"
    assert [Path(path).name for path in recipe_of(folder)["corpus"]] == ["a.txt", "b.txt"]
    code, out, _ = rung("eval", str(folder), "--json", cwd=ground)
    assert code == 0
    assert json.loads(out)["corpus"] == "a.txt and 1 more"
    assert (
        json.loads(out)["bits_per_byte"]
        == runs.read_record(folder)["scores"]["test"]["bits_per_byte"]
    )
    code, out, _ = rung("eval", str(folder), "a.txt", "b.txt", "--json", cwd=ground)
    assert code == 0


def test_a_climb_with_another_column_or_encoding_is_another(ground):
    rows = "".join(
        json.dumps({"text": text, "body": text.upper()}) + "\n"
        for text in make_text(60).split("\n\n")
    )
    write(ground / "c.jsonl", rows)
    climb = ("climb", "c.jsonl", "--rungs", "bigram", "--tokenizer", "char")
    assert rung(*climb, "--column", "body", cwd=ground)[0] == 0
    assert recipe_of(ground / "runs/c/bigram")["column"] == "body"
    assert rung(*climb, "--column", "body", cwd=ground)[0] == 0
    code, _, said = rung(*climb, cwd=ground)
    assert code == 2
    assert "was made with column 'body', not None" in said


def test_standard_input_is_kept_beside_the_run(ground):
    text = make_text(60, seed=7)
    assert rung("train", "bigram", "-", "--dry-run", cwd=ground, pipe=text)[0] == 0
    assert not list((ground / "runs").glob("stdin-*.txt"))
    code, _, said = rung("train", "bigram", "-", cwd=ground, pipe=text)
    assert code == 0
    (kept,) = (ground / "runs").glob("stdin-*.txt")
    assert kept.read_text() == text
    assert f"Standard input is kept in runs/{kept.name}\n" in said
    folder = ground / f"runs/{kept.stem}-bigram"
    assert Path(recipe_of(folder)["corpus"]).name == kept.name
    assert rung("eval", str(folder), cwd=ground)[0] == 0
    assert rung("eval", str(folder), "-", "--json", cwd=ground, pipe=text)[0] == 0
    for way in (
        ("--out", str(folder)),
        (),
    ):  # the folder is found by what is piped in where it is not named
        code, _, said = rung(
            "train", "bigram", "-", "--resume", *way, cwd=ground, pipe="" if way else text
        )
        assert code == 2
        assert "is finished: there is nothing to resume" in said
    code, _, said = rung("train", "bigram", "-", "--resume", cwd=ground, pipe=make_text(60, seed=8))
    assert code == 2
    assert "no run at runs/stdin-" in said
    code, _, said = rung("climb", "", cwd=ground)
    assert (code, said.count("\n")) == (2, 1)
    assert "the corpus is an empty text" in said
    code, _, said = rung("climb", "-", cwd=ground, pipe="")
    assert (code, said) == (
        2,
        "rung: standard input is empty: pipe a text into it, or name a file\n",
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with named pipes")
def test_a_pipe_is_refused_at_once_wherever_a_text_is_read(ground):
    """A pipe without a writer would be waited for without a word."""
    os.mkfifo(ground / "pipe")
    os.mkfifo(ground / "pipe.csv")
    run = "runs/a-and-1-more-bigram"
    for words in (
        ("train", "bigram", "pipe", "--out", "none"),
        ("eval", run, "pipe"),
        ("eval", run, "--pairs", "pipe.csv"),
        ("score", run, "--file", "pipe"),
        ("surprisal", run, "pipe"),
        ("surprisal", run, "pipe.csv", "--column", "word"),
        ("corpora", "check", "pipe"),
    ):
        code, _, said = rung(*words, cwd=ground)
        assert code == 2
        assert "cannot be read twice, as a pipe or a device: write its text" in said
    with pytest.raises(CorpusError, match="cannot be read twice"):
        load_conversations(str(ground / "pipe"))


def test_score_reads_a_file_and_standard_input(ground):
    run = "runs/a-and-1-more-bigram"
    write(ground / "one.txt", "Café of the\nto\n".encode("latin-1"))
    ways = [("Café of the\nto\n",), ("--file", "one.txt", "--encoding", "latin-1"), ("-",)]
    found = [
        json.loads(rung("score", run, *way, "--json", cwd=ground, pipe="Café of the\nto\n")[1])
        for way in ways
    ]
    assert found[0] == found[1] == found[2]
    for way, message in {
        (): "name one text",
        ("a", "--file", "one.txt"): "name one text",
        (
            "--file",
            "one.txt",
        ): "one.txt is not UTF-8: byte 3 is 0xe9; name its encoding, as in --encoding latin-1",
        ("--file", "none.txt"): "no such file: none.txt",
        ("a", "--encoding", "latin-1"): "--encoding is 'latin-1', but it is of --file",
    }.items():
        code, _, said = rung("score", run, *way, cwd=ground)
        assert code == 2
        assert message in said


@pytest.mark.parametrize("command", [("score", "TEXT"), ("generate", "PROMPT")])
def test_text_that_is_not_utf_8_is_one_line(ground, command):
    verb, name = command
    code, _, said = rung(verb, "runs/a-and-1-more-bigram", os.fsdecode(b"caf\xe9"), cwd=ground)
    assert code == 2
    assert said == f"rung: {name} is not UTF-8: byte 3 is 0xe9; write it in UTF-8\n"


def test_text_is_utf_8_whatever_the_locale(ground):
    """In a locale of ASCII, Python hands on each byte of an argument that is beyond it as a lone
    surrogate.
    """
    code = (
        "import sys; from rung.cli.options import read_typed; print(ascii(read_typed('PROMPT', "
        "sys.argv[1])))"
    )
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", code, "café"]
    assert (
        subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        == b"'caf\\xe9'\n"
    )
    run, escaped = "runs/a-and-1-more-bigram", "caf\udcc3\udca9"
    assert json.loads(rung("score", run, escaped, "--json", cwd=ground)[1])["text"] == "café"
    for words in ([escaped], ["the", "--stop", escaped]):
        code, _, said = rung("generate", run, *words, "--max-new-tokens", "1", cwd=ground)
        assert code == 0, said
    write(ground / "rows.jsonl", '{"text": "one"}\n')
    code, _, said = rung("train", "bigram", "rows.jsonl", "--column", escaped, cwd=ground)
    assert "has no column 'café'" in said
    code, _, said = rung("train", "bigram", "a.txt", "--set", f"model.{escaped}=1", cwd=ground)
    assert "model.café: bigram has no such field" in said
    code, _, said = rung("score", run, "half \ud83d", cwd=ground)
    assert (code, said) == (
        2,
        "rung: TEXT holds half a character (a lone surrogate): write it in UTF-8\n",
    )


def test_a_column_of_plain_text_is_refused_wherever_it_is_named(ground):
    for command in (
        ("train", "bigram", "a.txt", "--out", "none"),
        ("climb", "a.txt"),
        ("eval", "{}", "b.txt"),
    ):
        words = [word.format("runs/a-and-1-more-bigram") for word in command]
        code, out, said = rung(*words, "--column", "body", cwd=ground)
        assert (code, out) == (2, "")
        assert "rung: --column is 'body', but does not apply to " in said
    assert not (ground / "none").exists()


def test_a_file_whose_name_is_not_utf_8(ground):
    name = os.fsdecode(b"caf\xe9.txt")
    write(ground / name, make_text(60))
    code, _, said = rung("train", "bigram", name, cwd=ground)
    assert code == 0, said
    folder = ground / "runs/caf_-bigram"
    assert (folder / runs.RECORD).read_bytes().decode()
    record = runs.read_record(folder)
    assert Path(record["recipe"]["corpus"]).name == name
    assert record["corpus"]["name"] == "caf\ufffd.txt"
    for command in (("eval", str(folder)), ("runs",), ("runs", "--json"), ("report", str(folder))):
        code, _, said = rung(*command, cwd=ground)
        assert code == 0, said


def test_what_is_skipped_is_said_and_recorded(ground):
    for name in ("x.pdf", "y.docx", "z.png"):
        write(ground / "folder" / name, "x")
    write(ground / "folder/a.log", make_text(60))
    code, _, said = rung("train", "bigram", "folder", cwd=ground)
    assert code == 0
    assert "rung: folder: skipped 3 files: x.pdf, y.docx, z.png\n" in said
    record = runs.read_record(ground / "runs/folder-bigram")
    assert record["corpus"]["notes"] == ["skipped 3 files: x.pdf, y.docx, z.png"]
