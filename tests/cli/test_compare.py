"""`rung compare`: the same documents for all, differences by document, seeds as one model."""

import csv
import io
import json
import math
import os
import shutil
import signal

import pytest

import rung as library
from rung.errors import RunError
from rung.evaluation.compare import paired_bootstrap
from tests.conftest import make_text
from tests.conftest import run_rung as rung
from tests.models.foreign import build


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A folder with a text, two rungs that count, and a GPT-2 with two seeds."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "my.txt").write_text(make_text(40))
    (folder / "other.txt").write_text(make_text(60, seed=1))
    for name in ("bigram", "ngram"):
        made = rung("train", name, "my.txt", "--tokenizer", "whitespace", "--out", name, cwd=folder)
        assert made.returncode == 0, made.stderr
    for seed in (3, 4):
        made = rung(
            "train", "gpt2", "my.txt", "--tokenizer", "char", "--out", f"g{seed}", "--steps", 1,
            "--seed", seed, "--set", "hidden_size=16", "--set", "num_hidden_layers=1",
            cwd=folder,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    return folder


def compare(ground, *words):
    made = rung("compare", *words, "--format", "json", cwd=ground)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_the_difference_is_that_of_the_scores(ground):
    """On the runs' own test split, whose scores `rung eval` prints."""
    found = compare(ground, "bigram", "ngram")
    scores = [json.loads((ground / name / "rung.json").read_text()) for name in ("bigram", "ngram")]
    bits = [score["scores"]["test"]["bits_per_byte"] for score in scores]
    assert [model["bits_per_byte"] for model in found["models"]] == pytest.approx(bits)
    first, second = found["models"]
    assert "difference" not in first
    assert second["difference"] == pytest.approx(bits[1] - bits[0])
    assert second["difference_low"] < second["difference"] < second["difference_high"]
    assert 0 <= second["sign_holds"] <= 1
    assert (found["corpus"], found["split"]) == ("my.txt", "test")


def test_documents_are_paired_whatever_the_tokenizer(ground):
    """The table of `--per-document` gives the same difference by hand."""
    tables = []
    for name in ("bigram", "g3"):
        made = rung("eval", name, "other.txt", "--per-document", f"{name}.csv", cwd=ground)
        assert made.returncode == 0, made.stderr
        tables.append(list(csv.DictReader((ground / f"{name}.csv").open())))
    nats, sizes = (
        [[float(row[key]) for row in table] for table in tables] for key in ("nats", "bytes")
    )
    assert sizes[0] == sizes[1]
    wanted = paired_bootstrap(nats[1], nats[0], sizes[0])
    found = compare(ground, "bigram", "g3", "other.txt")
    assert found["split"] == "whole text" and found["documents"] == len(tables[0])
    model = found["models"][1]
    assert (model["difference"], model["difference_low"], model["sign_holds"]) == pytest.approx(
        (wanted.mean, wanted.low, wanted.sign_holds), rel=1e-6
    )


def test_seeds_of_one_model_are_one_row_with_their_spread(ground):
    found = compare(ground, "bigram", "g4", "g3")
    assert [model["runs"] for model in found["models"]] == [["bigram"], ["g4", "g3"]]
    model = found["models"][1]
    bits = model["seed_bits_per_byte"]
    assert model["seeds"] == [4, 3] and bits[0] != bits[1]
    assert model["bits_per_byte"] == pytest.approx(sum(bits) / 2)
    assert model["seed_deviation"] == pytest.approx(abs(bits[0] - bits[1]) / math.sqrt(2))
    alone = compare(ground, "g3", "g4")
    assert len(alone["models"]) == 1 and "difference" not in alone["models"][0]
    shown = rung("compare", "bigram", "g3", "g4", cwd=ground).stdout
    assert "the mean of seeds 3, 4" in " ".join(shown.split())


def test_the_table_fits_a_terminal(ground, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    made = rung("compare", "bigram", "ngram", "g3", cwd=ground)
    lines = made.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "sign holds" in made.stdout and lines[0].startswith("my.txt, test split: ")
    assert "by Student's t" in " ".join(made.stdout.split())
    assert "below 0 is better than it" in " ".join(made.stdout.split())
    assert " rung generate " in made.stderr


def test_the_same_table_in_other_forms(ground):
    names = ("bigram", "ngram", "other.txt", "--format")
    rows = list(csv.DictReader(io.StringIO(rung("compare", *names, "csv", cwd=ground).stdout)))
    assert [row["runs"] for row in rows] == ["bigram", "ngram"]
    assert rows[0]["difference"] == "" and float(rows[1]["difference"]) != 0
    markdown = rung("compare", *names, "markdown", cwd=ground).stdout.splitlines()
    assert markdown[2:4] == [
        "| model | bits per byte | difference | 95% interval | sign holds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    assert markdown[5].startswith("| ngram | ")
    latex = rung("compare", *names, "latex", cwd=ground).stdout
    assert r"\begin{tabular}{lrrrr}" in latex and r"95\% interval" in latex
    assert latex.count(r"\\") == 3 and ("$-0." in latex or "$+0." in latex)


def test_the_library_gives_the_same_and_shows_it_in_a_notebook(ground, monkeypatch):
    monkeypatch.chdir(ground)
    found = library.compare("bigram", library.load("ngram"), corpus="other.txt")
    assert found.as_dict() == compare(ground, "bigram", "ngram", "other.txt")
    assert "<td>" in found._repr_html_() and "ngram" in repr(found)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["bigram"], "two models or more are compared, and named is bigram"),
        (["other.txt", "bigram"], "bigram is named after the text other.txt"),
        (["bigram", "other.txt"], "at other.txt there is no model"),
        (["bigram", "bigram"], "bigram is named twice"),
        (["bigram", "runs/none"], "no run at runs/none"),
        (["bigram", "bigram"], "bigram is named twice"),
        (["bigram", "ngram", "bigram/"], "bigram and bigram/ are one run"),
        (["bigram", "ngram", "--window", "8"], "has no window: leave --window out"),
        (["g3", "g4", "--dtype", "float99"], "did you mean 'float32'"),
        (["bigram", "ngram", "none.txt"], "no run at none.txt"),
        (["bigram", "ngram", "--format", "latx"], "did you mean 'latex'"),
        (["bigram", "ngram", "--split", "tests"], "no split 'tests'"),
        (["bigram", "ngram", "empty.txt"], "empty.txt is empty"),
        (["bigram", "ngram", "--column", "words"], "say how to read other text"),
        (["bigram", "elsewhere"], "figures of different text do not compare"),
        (["bigram", "ngram", "seen.txt"], "was trained on"),
    ],
)
def test_a_mistake_is_one_line(ground, words, reason):
    (ground / "empty.txt").write_text("")
    (ground / "seen.txt").write_text((ground / "my.txt").read_text() + "and more")
    if "elsewhere" in words and not (ground / "elsewhere").exists():
        made = ("train", "bigram", "other.txt", "--tokenizer", "char", "--out", "elsewhere")
        assert rung(*made, cwd=ground).returncode == 0
    made = rung("compare", *words, "--quiet", cwd=ground)
    assert (made.returncode, made.stdout) == (2, "")
    assert reason in made.stderr and made.stderr.count("\n") == 1


@pytest.fixture
def checkpoint(ground):
    """The name of a checkpoint of the bigram, which has no record of its own."""
    name = "bigram/checkpoints/checkpoint-1"
    ignored = ["rung.json", "checkpoints"]
    shutil.copytree(ground / "bigram", ground / name, ignore=lambda *_: ignored)
    yield name
    shutil.rmtree(ground / "bigram" / "checkpoints")


@pytest.mark.parametrize(("verb", "others"), [("eval", ()), ("compare", ("ngram",))])
def test_a_checkpoint_is_held_to_the_text_of_its_run(ground, checkpoint, verb, others):
    (ground / "seen.txt").write_text((ground / "my.txt").read_text() + "and more")
    made = rung(verb, checkpoint, *others, "seen.txt", cwd=ground)
    assert made.returncode == 2 and "checkpoint-1 was trained on" in made.stderr


def test_a_checkpoint_has_the_text_of_its_run(ground, checkpoint):
    """For every verb that reads the text of a run, and without a trace in the run's record."""
    pytest.importorskip("pydivsufsort")
    record = (ground / "bigram" / "rung.json").read_bytes()
    second = ground / "bigram" / "checkpoints" / "checkpoint-2"
    shutil.copytree(ground / checkpoint, second)
    found = compare(ground, checkpoint, "bigram/checkpoints/checkpoint-2")
    assert found["corpus"] == "my.txt" and len(found["models"]) == 2
    for words in (
        ("corpora", "check", "--run", checkpoint),
        ("novelty", checkpoint, "--texts", 2, "--tokens", 20, "--sampling", "1,1"),
    ):
        made = rung(*words, "--json", "--quiet", cwd=ground)
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["corpus"] == "my.txt"
    assert (ground / "bigram" / "rung.json").read_bytes() == record


def test_the_options_that_a_model_is_loaded_with_are_those_of_eval(ground):
    options = ("--window", 8, "--dtype", "bfloat16", "--trust-remote-code")
    found = compare(ground, "g3", "g4", "other.txt", *options)
    made = rung("eval", "g3", "other.txt", *options, "--json", cwd=ground)
    bits = json.loads(made.stdout)["bits_per_byte"]
    assert found["models"][0]["seed_bits_per_byte"][0] == pytest.approx(bits)
    plain = compare(ground, "g3", "g4", "other.txt")["models"][0]["seed_bits_per_byte"][0]
    assert plain != pytest.approx(bits, rel=1e-9)


def test_text_that_a_run_was_trained_on_in_part_is_noted(ground):
    """As `rung eval` notes it."""
    (ground / "part.txt").write_text(
        (ground / "other.txt").read_text() * 2 + (ground / "my.txt").read_text()
    )
    words = ("bigram", "ngram", "part.txt")
    found = compare(ground, *words)
    made = rung("eval", "bigram", "part.txt", "--json", cwd=ground)
    seen = json.loads(made.stdout)["seen_in_training"]
    assert 0.1 < seen < 0.5
    assert [model["seen_in_training"] for model in found["models"]] == [seen, seen]
    assert f"ngram: {seen:.0%} of the bytes" in rung("compare", *words, cwd=ground).stdout


def test_the_table_of_documents_replaces_no_text(ground):
    (ground / "texts").mkdir()
    for path in ("one.txt", "texts/two.txt"):
        (ground / path).write_text("the cat sat\n")
    cases = (
        ("one.txt", "./one.txt", "the file that is read"),
        ("texts", "texts/two.txt", "a file of texts"),
    )
    for text, path, reason in cases:
        made = rung("eval", "bigram", text, "--per-document", path, cwd=ground)
        assert made.returncode == 2 and reason in made.stderr
        assert (ground / path).read_text() == "the cat sat\n"


def test_the_costs_of_documents_are_a_table(ground):
    (ground / "lines.txt").write_text("a b\n\nthe cat sat\n")
    words = ("eval", "bigram", "lines.txt", "--documents", "lines", "--json")
    made = rung(*words, "--per-document", "d.csv", cwd=ground)
    assert made.returncode == 0, made.stderr
    score = json.loads(made.stdout)
    assert "per_document" not in score
    rows = list(csv.DictReader((ground / "d.csv").open()))
    assert [(row["document"], row["bytes"], row["words"]) for row in rows] == [
        ("0", "3", "2"),
        ("2", "11", "3"),
    ]
    assert sum(float(row["nats"]) for row in rows) == pytest.approx(score["nats"])
    assert sum(int(row["tokens"]) for row in rows) == score["tokens"]
    for row in rows:
        bits = float(row["nats"]) / math.log(2) / int(row["bytes"])
        assert float(row["bits_per_byte"]) == pytest.approx(bits)


def test_a_place_that_cannot_be_written_is_found_before_the_scoring(ground):
    made = rung("eval", "bigram", "other.txt", "--per-document", "no/d.csv", cwd=ground)
    assert made.returncode == 2 and "no is no folder: make it first" in made.stderr
    made = rung("eval", "bigram", "--tasks", "x.yaml", "--per-document", "d.csv", cwd=ground)
    assert made.returncode == 2 and "bring their own text" in made.stderr


def test_scores_with_and_without_ends_are_not_compared(ground, tokenizer):
    """A model of another architecture is compared by its folder; one without an end token is not
    compared with one that has it.
    """
    folder = ground / "neox"
    build("gpt_neox", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = compare(ground, "bigram", "neox", "other.txt")
    assert found["models"][1]["rung"] == "gpt_neox" and found["models"][1]["difference"] > 0
    own = compare(ground, "neox", "bigram")  # the text is the one that bigram holds out
    assert (own["corpus"], own["split"]) == ("my.txt", "test")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    made = rung("compare", "bigram", "neox", "other.txt", "--quiet", cwd=ground)
    assert (made.returncode, made.stdout) == (2, "")
    assert "neox has no end-of-text token" in made.stderr and made.stderr.count("\n") == 1


def test_what_cannot_be_compared_is_refused_before_anything_is_scored(ground):
    """The text is a large one; of the two models the second does not load."""
    stages = []

    def note(progress):
        stages.append(progress.stage)

    (ground / "cut").mkdir(exist_ok=True)
    (ground / "cut" / "config.json").write_bytes((ground / "g3" / "config.json").read_bytes())
    for name, options, why in (
        ("cut", {}, "cut "),
        ("g3", {"window": 100_000}, "--window is 100,000"),
        ("g3", {"window": 0}, "--window is 0"),
    ):
        second = library.load(ground / name, **options)
        with pytest.raises(RunError, match=why):
            library.compare(
                ground / "bigram", second, corpus=ground / "other.txt", on_progress=note
            )
    assert stages == []


def test_cells_are_escaped_for_their_page():
    from rung.cli.tables import FittedTable, format_table

    table = FittedTable("a_b")
    table.add_column("model")
    table.add_figures("x")
    table.add_cells(r"50%_of & {a\b}~^#$", "-1.5")
    table.add_cells("a|b*c_d", "<0.1")
    latex = format_table(table, "latex").splitlines()
    assert latex[0] == "% a_b"
    assert latex[5] == (
        r"50\%\_of \& \{a\textbackslash{}b\}\textasciitilde{}\textasciicircum{}\#\$ & $-1.5$ \\"
    )
    assert latex[6].endswith(r"& \textless{}0.1 \\")
    assert r"| a\|b\*c\_d | \<0.1 |" in format_table(table, "markdown")


KILLED_BEFORE_ITS_RENAME = """
import os, signal, sys
from rung import files
from rung.cli.main import main
files.sync = lambda path: "killed" in path.parts and os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["rung", *sys.argv[1:]]
main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")
def test_a_kill_leaves_nothing_half_written_under_the_name_and_a_rerun_sweeps(ground, run_fork):
    """Killed when the new file is whole beside the old one, the last moment before the rename."""
    pytest.importorskip("constriction")
    place = ground / "killed"
    place.mkdir()
    rung("compress", "bigram", "other.txt", "packed", cwd=ground)
    for target, *words in (
        ("killed/c", "compress", "bigram", "other.txt", "killed/c"),
        ("killed/d", "decompress", "packed", "killed/d"),
        ("killed/s", "surprisal", "bigram", "other.txt", "--out", "killed/s"),
        ("killed/p", "eval", "bigram", "other.txt", "--per-document", "killed/p"),
    ):
        (ground / target).write_text("old")
        ended = run_fork("-c", KILLED_BEFORE_ITS_RENAME, *words, cwd=ground)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert (ground / target).read_text() == "old"
        assert len(list(place.glob(".*"))) == 1
        made = rung(*words, cwd=ground)
        assert made.returncode == 0, made.stderr
        assert (ground / target).read_text(errors="replace") != "old"
        assert not list(place.glob(".*"))
    assert (place / "d").read_text() == (ground / "other.txt").read_text()
