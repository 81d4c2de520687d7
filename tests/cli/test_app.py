"""The command, as a person runs it, on real text; in a process of its own where it is the process
that matters.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import run_rung as rung

VERBS = (
    "climb",
    "train",
    "eval",
    "compare",
    "score",
    "surprisal",
    "generate",
    "verify-resume",
    "export",
    "report",
    "runs",
    "sizes",
    "corpora",
)
VERBS += ("tokenizers", "tune", "chat", "serve", "novelty")
VERBS += ("compress", "decompress")
RUNG = Path(sys.executable).with_name("rung")


def rung_process(*args, cwd=None):
    """The command in a process of its own, which takes seconds to begin."""
    return subprocess.run(
        [str(RUNG), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def ground(tmp_path_factory, prose):
    """A folder with 20 kB of text, and a bigram and a tiny Llama trained on it."""
    folder = tmp_path_factory.mktemp("ground")
    (folder / "my.txt").write_text(prose)
    assert rung("train", "bigram", "my.txt", "--out", "b", cwd=folder).returncode == 0
    made = rung(
        "train", "llama3", "my.txt", "--out", "l", "--steps", 3, "--set", "hidden_size=32", "--set",
        "per_device_train_batch_size=2", cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


def test_help_answers_at_once():
    """In CPU time, which does not run while another process has the core; the best of some."""
    best = min(_cpu_seconds(lambda: rung_process("--help")) for _ in range(5))
    assert best < 0.5
    shown = rung("--help").stdout
    assert all(verb in shown for verb in VERBS)


def _cpu_seconds(call):
    """Of the processes that it starts and waits for."""
    before = os.times()
    call()
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def test_help_does_not_import_torch():
    program = (
        "import sys, rung.cli.main; sys.exit('torch' in sys.modules or 'transformers' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb):
    shown = rung(verb, "--help")
    assert shown.returncode == 0
    assert f"Example: rung {verb}" in shown.stdout


def test_train_prints_a_score_and_the_next_command(ground):
    made = rung("train", "ngram", "my.txt", "--out", "n", "--set", "order=3", cwd=ground)
    assert made.returncode == 0
    assert "bits per byte" in made.stdout
    assert "rung generate n" in made.stderr


def test_an_arpa_file_goes_out_and_comes_in(ground):
    made = rung(
        "train",
        "ngram",
        "my.txt",
        "--tokenizer",
        "whitespace",
        "--out",
        "w",
        "--set",
        "order=3",
        cwd=ground,
    )
    assert made.returncode == 0, made.stderr
    assert rung("export", "w", "w.arpa.gz", "--to", "arpa", cwd=ground).returncode == 0
    assert rung("export", "w.arpa.gz", "again", "--to", "hf", cwd=ground).returncode == 0
    lines = (
        (ground / "my.txt").read_text().splitlines()
    )  # other text: of its own, a run scores what was held out
    (ground / "other.txt").write_text("\n".join(" ".join(reversed(line.split())) for line in lines))
    first, second = (
        json.loads(rung("eval", run, "other.txt", "--json", cwd=ground).stdout)
        for run in ("w", "again")
    )
    assert second["kenlm"] == first["kenlm"]
    found = json.loads(rung("score", "again", "Return the", "--json", cwd=ground).stdout)
    assert all(1 <= token["order"] <= 3 for token in found["tokens"])


def test_a_size_is_trained_by_its_name_and_goes_to_meta_and_back(ground, monkeypatch):
    from rung.cli.main import app

    def run(*args):
        result = CliRunner().invoke(app, args)
        return result.exit_code, result.stdout or result.stderr

    monkeypatch.chdir(ground)
    fewer = ("hidden_size=64", "max_position_embeddings=32", "num_hidden_layers=1")
    assert (
        run("train", "llama3-nano", "my.txt", "--steps", "3", *(f"--set={part}" for part in fewer))[
            0
        ]
        == 0
    )
    config = json.loads(Path("runs/my-llama3-nano/config.json").read_text())
    assert (
        config.items() >= {"hidden_size": 64, "intermediate_size": 384, "vocab_size": 320}.items()
    )
    assert run("export", "runs/my-llama3-nano", "m", "--to", "meta")[0] == 0
    assert run("export", "m", "from-meta", "--to", "hf")[0] == 0
    code, said = run("score", "m", "Return")
    assert code == 2
    assert "rung export m OUT --to hf" in said
    bits = [
        json.loads(run("score", name, "Return", "--json")[1])["bits"]
        for name in ("runs/my-llama3-nano", "from-meta")
    ]
    assert bits[0] == bits[1]
    assert "1,235,814,400" in run("sizes")[1]
    assert json.loads(run("sizes", "--json")[1])["sizes"][0]["name"] == "gpt2-nano"


@pytest.mark.parametrize("run", ["b", "l"])
def test_json_is_one_object_and_nothing_else(run, ground):
    for args in (
        ("eval", run),
        ("score", run, "Return the"),
        ("generate", run, "Return", "--max-new-tokens", 3),
        ("runs", "."),
    ):
        shown = rung(*args, "--json", cwd=ground)
        assert shown.returncode == 0, shown.stderr
        assert isinstance(json.loads(shown.stdout), dict)


def test_json_is_all_that_a_process_prints(ground):
    """What a library below Python writes is there too."""
    shown = rung_process("eval", "l", "--json", cwd=ground)
    assert shown.returncode == 0, shown.stderr
    assert isinstance(json.loads(shown.stdout), dict)


@pytest.mark.slow
def test_the_switches_stand_beside_the_plain_score(ground):
    from rich.console import Console

    from rung.cli.score_tables import score_table

    plain = json.loads((ground / "l/rung.json").read_text())["scores"]["test"]
    shown = rung("eval", "l", "--mix", "bigram=b", "--cache", "--dynamic", "--json", cwd=ground)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    switches = {name: found[name] for name in ("mix", "cache", "dynamic")}
    assert {key: found[key] for key in plain} == plain | {"seconds": 0.0}
    for score in switches.values():
        assert score["difference"] == pytest.approx(
            score["bits_per_byte"] - plain["bits_per_byte"], abs=1e-5
        )
        assert score["low"] <= score["bits_per_byte"] <= score["high"]
        assert score["difference_low"] <= score["difference"] <= score["difference_high"]
        assert score["validation_bytes"] > 0
    assert list(switches["mix"]["weights"]) == ["l", "b"]
    assert {"weight", "sharpness", "size"} <= switches["cache"].keys()
    assert {"learning_rate", "decay", "segment", "carried_over_documents"} <= switches[
        "dynamic"
    ].keys()
    console = Console(width=120, file=io.StringIO())
    console.print(score_table("llama3", "my.txt", "test", found))
    table = console.file.getvalue()
    assert (
        table.index("bits per byte")
        < table.index("--mix")
        < table.index("--cache")
        < table.index("--dynamic")
    )


def test_a_count_that_failed_can_be_tried_again(ground):
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    for settings, message in (
        (("--set", "counting.memory=1MB"), "MB suffices"),
        (("--set", "smoothing=laplace"), "unknown smoothing"),
    ):
        made = rung("train", "ngram", "my.txt", "--out", "again-and-again", *settings, cwd=ground)
        assert made.returncode == 2
        assert message in made.stderr
    assert rung("train", "ngram", "my.txt", "--out", "again-and-again", cwd=ground).returncode == 0


def test_an_infinite_cost_is_said_to_be_one(ground):
    pytest.importorskip(
        "pydivsufsort", reason="pydivsufsort is not installed: pip install 'rung[scale]'"
    )
    settings = ("--set", "order=inf", "--set", "smoothing=none")
    made = rung("train", "ngram", "my.txt", "--out", "bare", *settings, cwd=ground)
    assert made.returncode == 0, made.stderr
    assert "infinite" in made.stdout
    assert "infinite" in rung("runs", ".", cwd=ground).stdout
    shown = rung("eval", "bare", "--json", cwd=ground).stdout
    assert json.loads(shown, parse_constant=pytest.fail)["bits_per_byte"] is None
    assert rung("report", "bare", "--out", "bare.html", cwd=ground).returncode == 0


def test_score_shows_how_each_word_was_counted(ground):
    made = rung("train", "ngram", "my.txt", "--out", "counted", "--set", "order=3", cwd=ground)
    assert made.returncode == 0, made.stderr
    shown = rung("score", "counted", "Return the", cwd=ground).stdout
    assert all(column in shown.splitlines()[1] for column in ("order", "seen", "discount"))
    found = json.loads(rung("score", "counted", "Return the", "--json", cwd=ground).stdout)
    assert all(
        token["discount"] < token["count"] or token["count"] == 0 for token in found["tokens"]
    )
    assert found["renormalized"] is False and "no distribution" not in shown
    stupid = ("--out", "stupid", "--set", "smoothing=stupid-backoff", "--set", "order=2")
    assert "no distribution" in rung("train", "ngram", "my.txt", *stupid, cwd=ground).stdout
    assert (
        json.loads(rung("score", "stupid", "Return the", "--json", cwd=ground).stdout)[
            "renormalized"
        ]
        is True
    )
    assert "no distribution" in rung("score", "stupid", "Return the", cwd=ground).stdout


def test_generating_with_drafts_stops_and_rounded_weights(ground):
    assert rung("train", "ngram", "my.txt", "--out", "guess", cwd=ground).returncode == 0
    asked = ("generate", "l", "The", "--temperature", 0, "--max-new-tokens", 20, "--json")
    plain = json.loads(rung(*asked, cwd=ground).stdout)
    assert {"text", "tokens", "seconds", "tokens_per_second"} <= set(plain)
    assert plain["tokens_per_second"] == pytest.approx(plain["tokens"] / plain["seconds"])
    for draft in ("prompt", "guess"):
        assert (
            json.loads(rung(*asked, "--draft", draft, cwd=ground).stdout)["text"] == plain["text"]
        )
    stop = plain["text"][3:6]
    stopped = json.loads(rung(*asked, "--stop", stop, cwd=ground).stdout)
    assert stopped["text"] == plain["text"][: plain["text"].index(stop)]
    rounded = rung(*asked[:-1], "--weights", "int8", cwd=ground)
    assert "int8 weights cost" in rounded.stderr and "bits per byte" in rounded.stderr
    refused = rung("generate", "b", "The", "--draft", "prompt", cwd=ground)
    assert refused.returncode == 2
    assert "cannot take tokens back" in refused.stderr


def test_an_ngram_of_any_length(ground):
    pytest.importorskip(
        "pydivsufsort", reason="pydivsufsort is not installed: pip install 'rung[scale]'"
    )
    made = rung("train", "ngram", "my.txt", "--out", "any", "--set", "order=inf", cwd=ground)
    assert made.returncode == 0, made.stderr
    assert "bits per byte" in made.stdout
    assert json.loads((ground / "any/rung.json").read_text())["rung"] == "infini-gram"
    found = json.loads(rung("score", "any", "Return the", "--json", cwd=ground).stdout)
    assert max(token["order"] for token in found["tokens"]) > 1
    assert rung("generate", "any", "Return", "--max-new-tokens", "5", cwd=ground).returncode == 0
    refused = rung(
        "train",
        "ngram",
        "my.txt",
        "--out",
        "refused",
        "--set",
        "order=inf",
        "--set",
        "k=2",
        cwd=ground,
    )
    assert refused.returncode == 2
    assert "infini-gram has no such field" in refused.stderr


def test_score_prints_the_probability_of_the_sentence(ground):
    (ground / "five.txt").write_text(
        "the cat sat on the mat\nthe dog sat on the log\na cat and a dog sat on a mat\n"
        "the mat is on the log\na dog is not a cat\n"
    )
    (ground / "splits").mkdir()
    for split in ("train", "test"):
        (ground / "splits" / f"{split}.txt").write_text((ground / "five.txt").read_text())
    made = rung(
        "train",
        "bigram",
        "splits",
        "--documents",
        "lines",
        "--tokenizer",
        "word-split",
        "--out",
        "five",
        cwd=ground,
    )
    assert made.returncode == 0, made.stderr
    # (C(hw) + 1) / (C(h) + 15): begin the, the cat, cat sat, sat on, on the, the mat, mat end
    wanted = (4 / 20) * (2 / 21) * (2 / 18) * (4 / 18) * (4 / 19) * (3 / 21) * (3 / 18)
    facts = json.loads(rung("score", "five", "the cat sat on the mat", "--json", cwd=ground).stdout)
    assert facts["probability"] == pytest.approx(wanted, rel=1e-5)
    assert f"{wanted:.4g}" in rung("score", "five", "the cat sat on the mat", cwd=ground).stdout


def test_climb_prints_a_table_and_writes_the_report(ground):
    made = rung(
        "climb", "my.txt", "--rungs", "bigram,gpt2", "--minutes", "0.05", "--out", "c", cwd=ground
    )
    assert made.returncode == 0, made.stderr
    assert all(word in made.stdout for word in ("bigram", "gpt2", "bits per byte", "lzma"))
    assert (ground / "c" / "report.html").stat().st_size > 10_000
    assert "Report: c/report.html" in made.stderr
    again = rung(
        "climb", "my.txt", "--rungs", "bigram,gpt2", "--minutes", "0.05", "--out", "c", cwd=ground
    )
    assert again.stdout == made.stdout


def test_report_of_chosen_runs(ground):
    assert rung("report", "b", "l", "--out", "r.html", cwd=ground).returncode == 0
    assert "llama3" in (ground / "r.html").read_text()


def bad_ground(ground):
    """Everything that a user can get wrong, in one folder."""
    (ground / "empty.txt").write_text("")
    (ground / "blank.txt").write_text("\n\n \n")
    (ground / "word.txt").write_text("word")
    (ground / "small.txt").write_text("A line of text. " * 12)
    (ground / "binary.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (ground / "latin.txt").write_bytes("naïve café\n".encode("latin-1") * 500)
    (ground / "columns.csv").write_text("a,b\n1,2\n")
    (ground / "folder").mkdir(exist_ok=True)
    if not (ground / "words").exists():
        made = rung(
            "train", "bigram", "my.txt", "--tokenizer", "whitespace", "--out", "words", cwd=ground
        )
        assert made.returncode == 0, made.stderr
    broken = ground / "broken"
    if not broken.exists():
        import shutil

        shutil.copytree(ground / "l", broken)
        (ground / "damaged").mkdir()
        (ground / "damaged" / "rung.json").write_text("{")
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])


MISTAKES = {
    "missing": (["train", "bigram", "nowhere.txt"], "no such file or folder: nowhere.txt"),
    "empty": (["train", "bigram", "empty.txt"], "empty.txt is empty"),
    "blank": (["train", "bigram", "blank.txt"], "blank.txt contains no text"),
    "one word": (["train", "bigram", "word.txt"], "too little text to split into train, validation "
                                                  "and test: 1 doc"),
    "200 bytes": (["climb", "small.txt"], "give at least 4,000 bytes"),
    "binary": (["train", "bigram", "binary.txt"], "binary.txt is binary"),
    "not UTF-8": (["train", "bigram", "latin.txt"], "latin.txt is not UTF-8: byte 2 is 0xef"),
    "no text column": (["train", "bigram", "columns.csv"], "no text column: it has a, b"),
    "folder without text": (["train", "bigram", "folder"], "no file that can be read"),
    "glob": (["train", "bigram", "*.xyz"], "no file matches *.xyz"),
    "documents": (["train", "bigram", "my.txt", "--documents", "pages"], "choose from lines, "
                                                                         "paragraphs, file"),
    "documents of its own": (["train", "bigram", "toy-language", "--documents", "lines"],
                             "toy-language has documents of its own"),
    "no network": (["train", "bigram", "hf:some/where"], "python-docs"),
    "rungs": (["climb", "my.txt", "--rungs", "nonsense"], "unknown rung 'nonsense'"),
    "rung": (["train", "lama3", "my.txt"], "did you mean 'llama3'"),
    "no rung": (["train"], "names no rung"),
    "minutes": (["climb", "my.txt", "--minutes", "-1"], "it must be a positive number"),
    "no minutes": (["train", "gpt2", "my.txt", "--minutes", "0"], "minutes is 0.0: it must be a "
                                                                  "positive number"),
    "steps": (["train", "gpt2", "my.txt", "--steps", "-5"], "steps is -5"),
    "set": (["train", "gpt2", "my.txt", "--set", "learning_rat=1"], "did you mean 'learning_rate'"),
    "set value": (["train", "gpt2", "my.txt", "--set", "hidden_size=abc"], "hidden_size"),
    "heads": (
        ["train", "gpt2", "my.txt", "--set", "hidden_size=30", "--set", "num_attention_heads=4"],
        "divided by 4",
    ),
    "tokenizer": (["train", "gpt2", "my.txt", "--tokenizer", "bpee"], "did you mean 'bpe'"),
    "vocabulary": (["train", "gpt2", "my.txt", "--set", "tokenizer.vocab_size=5"],
                   "needs at least 259"),
    "not a run": (["eval", "folder"], "folder is not a run"),
    "no run": (["score", "nowhere", "text"], "no run at nowhere"),
    "corrupt weights": (["generate", "broken", "text"], "broken/model.safetensors is damaged"),
    "in use": (["train", "bigram", "my.txt", "--out", "b"], "b is not empty"),
    "resume": (["train", "--out", "b", "--resume"], "b is finished"),
    "resume otherwise": (["train", "--out", "b", "--resume", "--set", "seed=1"],
                         "own recipe: --set: leave it out"),
    "resume with a batch": (["train", "--out", "b", "--resume", "--set", "global_batch_size=4"],
                            "b is finished"),
    "resume with a batch and more": (
        ["train", "--out", "b", "--resume", "--set", "global_batch_size=4", "--set", "steps=9"],
        "--set: leave it out",
    ),
    "resume with a seed": (["train", "--out", "b", "--resume", "--seed", "0"],
                           "own recipe: --seed: leave it out"),
    "tune on with a seed": (["tune", "--out", "l", "--resume", "--seed", "1"],
                            "as the run was begun: --seed: leave"),
    "no data": (["tune", "l", ""], "DATA is an empty text, as of a variable that is not set"),
    "out is a file": (["train", "bigram", "my.txt", "--out", "my.txt"], "my.txt is a file, and a "
                                                                        "run is a folder"),
    "folder as a file": (["score", "b", "--file", "folder"], "folder is a folder: name a file"),
    "tokenizer's name": (["train", "bigram", "my.txt", "--set", "tokenizer.path=''"],
                         "'': it must be a name"),
    "tokenizer's kind": (["train", "bigram", "my.txt", "--set", "tokenizer.kind=[1]"],
                         "[1]: it must be a name"),
    "preference": (["tune", "l", "--preference", "p.jsonl", "--steps", "3"], "leave out DATA, "
                                                                             "--minutes, --steps "
                                                                             "and"),
    "seed": (["train", "gpt2", "my.txt", "--seed", "-1"], "seed is -1: it must be a whole number "
                                                          "from 0"),
    "verify counts": (["verify-resume", "b"], "bigram is fitted by counting, and takes no steps"),
    "verify nothing": (["verify-resume", "nowhere.yaml"], "no recipe at nowhere.yaml"),
    "smoothing": (["train", "ngram", "my.txt", "--set", "smoothing=laplace"], "unknown smoothing "
                                                                              "'laplace'"),
    "prune": (["train", "ngram", "my.txt", "--set", "prune=[1]"], "its first entry must be 0"),
    "not ARPA": (["export", "my.txt", "out", "--to", "hf"], "not a whole ARPA file"),
    "no ARPA": (["export", "no.arpa", "out", "--to", "hf"], "no run at no.arpa"),
    "ARPA rung": (["train", "rnn", "--from", "my.txt"], "--to hf` makes one of an ARPA file"),
    "ARPA base": (["train", "ngram", "--from", "my.txt"], "rung export FILE OUT --to hf"),
    "former --engine": (
        ["train", "ngram", "my.txt", "--engine", "duckdb"],
        "--engine is a setting now: write --set counting.engine=duckdb",
    ),
    "former --memory": (
        ["train", "ngram", "my.txt", "--memory=2GB"],
        "--memory is a setting now: write --set counting.memory=2GB",
    ),
    "former --lora": (
        ["train", "gpt2", "my.txt", "--lora", "8"],
        "--lora is a setting now: write --set lora=8",
    ),
    "former --carry-state": (
        ["train", "rnn", "--carry-state", "my.txt"],
        "--carry-state is a setting now: write --set carry_state=true",
    ),
    "unknown engine": (
        ["train", "ngram", "my.txt", "--set", "counting.engine=duck"],
        "unknown engine 'duck'",
    ),
    "engine of a network": (
        ["train", "rnn", "my.txt", "--set", "counting.engine=spark"],
        "only ngram counts with an engine",
    ),
    "no memory": (
        ["train", "ngram", "my.txt", "--set", "counting.memory=much"],
        "memory is 'much'",
    ),
    "format": (["export", "b", "b.bin", "--to", "bin"], "unknown format 'bin'"),
    "not n-grams": (["export", "b", "b.arpa"], "ARPA holds n-grams"),
    "split": (["eval", "b", "--split", "best"], "no split 'best': choose from train, validation, "
                                                "test"),
    "mix": (["eval", "l", "--mix", "b"], "--mix is 'b': write it as RUNG=RUN"),
    "mix rung": (["eval", "l", "--mix", "ngram=b"], "b is a 'rung-bigram' model and no ngram"),
    "mix tokenizer": (["eval", "l", "--mix", "bigram=words"], "rung train bigram CORPUS "
                                                              "--tokenizer l"),
    "cache": (["eval", "b", "--cache"], "bigram counts, so it has no hidden states"),
    "dynamic": (["eval", "b", "--dynamic"], "no gradient for --dynamic"),
    "fitted where scored": (["eval", "l", "--split", "validation", "--cache"],
                            "is the only validation text there is"),
    "temperature": (["generate", "b", "x", "--temperature", "-1"], "temperature is -1.0"),
    "damaged report": (["report", "damaged"], "rung.json is damaged"),
    "report": (["report", "folder"], "folder is not a run"),
    "report over a folder": (["report", "b", "--out", "folder"], "folder is a folder: name a file"),
    "recipe": (["train", "--recipe", "nowhere.yaml"], "no recipe at nowhere.yaml"),
    "out": (["train", "bigram", "my.txt", "--out", "my.txt/run"], "cannot be made"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_exit_code_2(mistake, ground, monkeypatch):
    """In this process, to be quick: what `main` would do, less the start of an interpreter."""
    from rung.cli.main import app

    bad_ground(ground)
    monkeypatch.chdir(ground)
    args, message = MISTAKES[mistake]
    if "--out" not in args and args[0] in ("climb", "train"):
        args = [*args, "--out", f"out-{mistake.replace(' ', '-')}"]
    result = CliRunner().invoke(app, args)
    lines = result.stderr.strip().splitlines()
    said = [line for line in lines if line.startswith("rung: ")]
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(said) == 1
    assert message in said[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_mistake_in_a_real_process(ground, run_fork):
    bad_ground(ground)
    shown = run_fork("rung", "eval", "folder", cwd=ground)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert "Traceback" not in shown.stderr


def test_a_cache_that_cannot_be_made_says_where_another_is_named(ground, monkeypatch):
    """As without a home folder, or on a file system that can only be read."""
    cache = ground / "my.txt" / "cache"
    monkeypatch.setenv("RUNG_CACHE", str(cache))
    shown = rung("train", "bigram", "my.txt", "--out", "uncached", "--quiet", cwd=ground)
    assert shown.returncode == 2
    assert f"the cache {cache} cannot be written to (Not a directory)" in shown.stderr
    assert "RUNG_CACHE" in shown.stderr and shown.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes of Windows break otherwise")
def test_an_output_that_ends_or_is_full_is_no_traceback(ground, start_fork):
    """As with `| head -1`, and with `> FILE` on a full disk."""
    process = start_fork(
        "rung", "runs", "--json", ".", cwd=ground, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 1)
    if Path("/dev/full").is_char_device():
        for words in (["runs", "."], [], ["--help"], ["--version"], ["eval", "--help"]):
            with Path("/dev/full").open("w") as full:
                shown = start_fork("rung", *words, cwd=ground, stdout=full, stderr=subprocess.PIPE)
                said = shown.stderr.read()
            assert shown.wait() == 2, words
            assert "standard output could not be written to (No space left on device)" in said
            assert said.count("\n") == 1
        with Path("/dev/full").open("w") as full:
            shown = start_fork("rung", "eval", "none", cwd=ground, stderr=full)
            assert shown.wait() == 2


def test_an_option_that_is_no_number_is_a_mistake(ground):
    shown = rung("climb", "--minutes", "x", cwd=ground)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "--minutes" in shown.stderr and "Traceback" not in shown.stderr


def test_ctrl_c_saves_and_prints_the_line_that_resumes(ground, start_fork):
    process = start_fork(
        "rung", "train", "gpt2", "my.txt", "--out", "i", "--steps", "100000", "--set",
        "hidden_size=32", "--set", "logging_steps=5", cwd=ground, stderr=subprocess.PIPE,
    )  # fmt: skip
    metrics = ground / "i" / "metrics.jsonl"
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "rung train --out i --resume" in said.split("Go on with: ")[1]
    assert list((ground / "i" / "checkpoints").glob("checkpoint-*/manifest.json"))


def test_a_kill_is_survived(ground, start_fork):
    """SIGKILL in the middle, then --resume to the end."""
    settings = [
        "--steps",
        "60",
        "--set",
        "hidden_size=32",
        "--set",
        "save_steps=5",
        "--set",
        "logging_steps=1",
    ]
    process = start_fork(
        *("rung", "train", "gpt2", "my.txt", "--out", "k", *settings),
        cwd=ground,
        stderr=subprocess.DEVNULL,
    )
    while not list((ground / "k").glob("checkpoints/*/manifest.json")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    made = rung("train", "--out", "k", "--resume", cwd=ground)
    assert made.returncode == 0, made.stderr
    steps = [
        json.loads(line)["step"]
        for line in (ground / "k" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)
    assert max(steps) == 60


def test_counting_on_disk_changes_nothing(ground):
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    for out, more in (("in-memory", ()), ("on-disk", ("--set", "counting.memory=2GB"))):
        assert rung("train", "ngram", "my.txt", "--out", out, *more, cwd=ground).returncode == 0
    first, second = (
        json.loads((ground / out / "rung.json").read_text()) for out in ("in-memory", "on-disk")
    )
    assert second["recipe"]["counting"] == {"memory": "2GB"}
    assert second["scores"]["test"]["nats"] == first["scores"]["test"]["nats"]
