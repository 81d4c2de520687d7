"""What the reader of the screen gets: progress, tables as wide as the terminal, lines that work as
printed.
"""

import io
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from rung import runs
from rung.api.interrupts import name_saved_work
from rung.api.ladder import Ladder
from rung.cli import output, progress
from rung.cli.app import run_or_exit, verb
from rung.cli.main import app
from rung.cli.output import escape_controls, print_next_command, set_quiet, suggest_prompt
from rung.cli.progress import Display
from rung.cli.run_tables import climb_table, runs_table, summarize_run
from rung.cli.score_tables import score_table, surprisal_table, tasks_table
from rung.cli.tables import sizes_table
from rung.cli.train import _compare_with_law, _format_longer_climb
from rung.evaluation.surprisal import TokenScore
from rung.models.sizes import SIZES
from rung.progress import Progress
from rung.report.summaries import read_summaries
from rung.workflows.climb import Climb

WIDTHS = (120, 80, 60, 40)
HOSTILE = "[/b] \x1b[31mred[bold] [link=x]"
SCORE = {
    "bits_per_byte": 2.112,
    "low": 1.94,
    "high": 2.26,
    "word_perplexity": 1.0142e304,
    "token_perplexity": 2.5e200,
    "nats": 1e6,
    "words": 3,
    "tokens": 100,
    "bytes": 300_000,
    "documents": 12,
    "window": 256,
    "stride": 128,
    "unknown_words": 0,
    "unknown_nats": 0.0,
    "lost": [],
}


@pytest.fixture(autouse=True)
def aloud(monkeypatch):
    """No command before has left the process quiet."""
    monkeypatch.setitem(output._state, "quiet", False)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def folders(tmp_path):
    """Records of finished runs and a failed one, with text in them that means something to a
    terminal and to rich.
    """
    common = {
        "corpus": {"name": f"{HOSTILE}.txt", "fingerprint": "f"},
        "tokenizer": {"kind": "bpe", "vocab_size": 1024, "fingerprint": "t"},
        "scores": {"test": SCORE},
        "training": {"seconds": 77.5, "tokens_per_second": 11_136_713.0, "steps": 5, "tokens": 100},
        "parameters": 1_214_668,
        "sample": HOSTILE,
        "marks": {"zlib": 2.487, "lzma after train": 1.82},
    }
    made = {name: {"rung": name, **common} for name in ("bigram", "rnn-attention")}
    made["gpt2"] = {"rung": "gpt2", "failed": f"no memory {HOSTILE}"}
    for name, record in made.items():
        runs.write_record(runs.make_folder(tmp_path / name), record)
    return [tmp_path / name for name in made]


def draw(table, width, **how):
    console = Console(width=width, file=io.StringIO(), color_system=None, **how)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_ladder_shows_rungs_and_bits_per_byte_at_any_width(folders, width):
    shown = draw(climb_table(read_summaries(folders), folders), width)
    assert max(map(len, shown.splitlines())) <= width
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    for name in ("bigram", "rnn-attention"):
        assert "2.112 (1.94-2.26)" in rows[name]
    assert "failed" in rows["gpt2"]
    assert "gpt2 failed: no memory [/b]" in shown
    assert ("a sample" in shown, "word ppl" in shown) == (width > 100, width > 100)
    assert "\x1b" not in shown


def test_a_mark_that_was_left_out_is_told_below_the_ladder(folders):
    why = "lzma after train is left out: it would take about 199 s, and this run has 10 s for it"
    records = [runs.read_record(folder) for folder in folders]
    runs.write_record(folders[0], records[0] | {"marks": {"zlib": 2.487}, "marks_left_out": why})
    shown = draw(climb_table(read_summaries(folders), folders), 200)
    assert "1.820" in shown and why not in shown  # another run has it
    runs.write_record(folders[1], records[1] | {"marks": {"zlib": 2.487}})
    assert why in draw(climb_table(read_summaries(folders), folders), 200)


def test_perplexities_are_powers_of_ten_where_digits_mean_nothing(folders):
    shown = draw(climb_table(read_summaries(folders), folders), 200)
    assert "000,000,000" not in shown
    assert "000,000,000" not in draw(score_table("rnn", "my.txt", "test", SCORE), 80)
    assert "1 document;" in draw(score_table("rnn", "my.txt", "test", SCORE | {"documents": 1}), 80)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_score_that_is_of_no_distribution_is_marked(folders, width):
    record = runs.read_record(folders[0])
    stupid = SCORE | {"renormalized": True}
    runs.write_record(
        folders[0], record | {"scores": {"test": stupid}, "sample": "\u2031\ufffdz\ufffdV"}
    )
    shown = draw(climb_table(read_summaries(folders), folders), width)
    assert "2.112 (1.94-2.26)*" in shown
    assert "* bigram: no distribution;" in " ".join(shown.split())
    assert ("breaks characters of several" in " ".join(shown.split())) == ("a sample" in shown)
    assert "no distribution" in draw(score_table("ngram", "my.txt", "test", stupid), width)
    listed = draw(runs_table([(folders[0], runs.read_record(folders[0]))]), width)
    assert "2.112*" in listed and "* no distribution;" in " ".join(listed.split())
    for mark in (True, False):
        shown = draw(surprisal_table([TokenScore(text="a", bits=2.0, renormalized=mark)]), width)
        asked = {
            "rung": "ngram",
            "harness": "lm_eval",
            "limit": None,
            "renormalized": mark,
            "tasks": {},
        }
        mixed = dict.fromkeys(("bits_per_byte", "difference"), 0.5) | dict.fromkeys(
            ("difference_low", "low", "high")
        )
        mixed |= {"difference_high": None, "weights": {"a": 1.0}, "renormalized": ["a"] * mark}
        mixture = draw(score_table("rnn", "my.txt", "test", SCORE | {"mix": mixed}), width)
        marked = [
            "no distribution" in " ".join(s.split())
            for s in (shown, draw(tasks_table(asked), width), mixture)
        ]
        assert marked == [mark] * 3
    assert summarize_run(folders[0], runs.read_record(folders[0]))["renormalized"]
    assert "no distribution" not in draw(score_table("ngram", "my.txt", "test", SCORE), width)


def test_runs_on_one_text_stand_together_and_doubt_is_marked():
    def record(text, steps):
        training = {"steps": steps, "tokens": 100, "seconds": 1.0}
        made = {
            "rung": "rnn",
            "recipe": {"rung": "rnn"},
            "training": training,
            "scores": {"test": SCORE},
        }
        return made | {"corpus": {"name": "my.txt", "fingerprint": text}}

    found = [
        (Path("a"), record("one", 500)),
        (Path("b"), record("other", 500)),
        (Path("c"), record("one", 2)),
    ]
    lines = [line.split() for line in draw(runs_table(found), 80).splitlines() if "2.112" in line]
    assert [line[0] for line in lines] == ["a", "c", "b"]
    assert ["‡" in line for line in lines] == [False, True, False]
    assert summarize_run(*found[2])["doubt"]
    assert not summarize_run(*found[0])["doubt"]


@pytest.mark.parametrize("width", WIDTHS)
def test_other_tables_keep_their_figures(folders, width):
    found = [(folder, runs.read_record(folder)) for folder in folders]
    for table, kept in (
        (score_table(HOSTILE, HOSTILE, "test", SCORE), "2.1120"),
        (runs_table(found), "2.112"),
        (sizes_table(SIZES), "70,553,706,496"),
        (
            surprisal_table(
                [TokenScore(text=HOSTILE, bits=2000.0, order=3, count=1, discount=0.5)]
            ),
            "e-603",
        ),
    ):
        shown = draw(table, width)
        assert kept in shown
        assert max(map(len, shown.splitlines())) <= width
        assert "\x1b" not in shown


def test_a_run_in_json_is_a_summary(folders):
    found = [summarize_run(folder, runs.read_record(folder)) for folder in folders]
    assert all(set(run) == set(found[0]) and len(json.dumps(run)) < 400 for run in found)
    assert found[0]["bits_per_byte"] == 2.112
    assert found[0]["doubt"].startswith("5 training steps only")
    listed = draw(runs_table([(folders[0], runs.read_record(folders[0]))]), 80)
    assert "2.112 ‡" in listed
    assert "too few training steps" in listed
    assert (found[2]["finished"], found[2]["failed"]) == (False, f"no memory {HOSTILE}")


TRAINING = Progress(
    "training", 50, 1000, f"35,850 tokens/s, loss 3.200, 2.112 bits per byte {HOSTILE}"
)


def told(width, clock, **how):
    """A display that has heard of a run that is done, one that failed, and one that is at it."""
    console = Console(
        width=width, file=io.StringIO(), force_terminal=True, color_system=None, **how
    )
    display = Display(lambda: clock[0], console)
    display.show(Progress("reading", run="rnn-attention"))
    display.show(Progress("done", run="rnn-attention"))
    display.show(Progress("reading", run="gpt2"))
    display.show(Progress("failed", note=HOSTILE, run="gpt2"))
    display.show(Progress("training", 0, 1000, run="llama3"))
    clock[0] += 60
    display.show(replace(TRAINING, run="llama3"))
    return display


@pytest.mark.parametrize("width", WIDTHS)
def test_the_progress_line_keeps_its_time_left(width):
    shown = draw(told(width, [0.0]).draw(), width)
    lines = shown.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert "19:00" in lines[2]
    assert [line[0] for line in lines[:2]] == ["✓", "✗"]
    assert "\x1b" not in shown


def test_what_failed_is_not_ticked_when_the_command_ends():
    display = told(80, [0.0])
    with pytest.raises(ValueError, match="no"), display:
        raise ValueError("no")
    assert [task.outcome for task in display.tasks.values()] == ["done", "failed", "failed"]
    display = told(80, [0.0])
    with pytest.raises(KeyboardInterrupt), display:
        raise KeyboardInterrupt
    assert display.tasks["llama3"].outcome == "stopped"


def test_without_a_terminal_there_is_a_line_every_ten_seconds():
    clock, file = [0.0], io.StringIO()
    display = Display(lambda: clock[0], Console(file=file))
    display.show(Progress("training", 0, 1000, run="llama3"))
    for second in range(1, 61):
        clock[0] = second
        display.show(Progress("training", second, 1000, "35,850 tokens/s", run="llama3"))
        for _ in range(3):
            display.print_when_due()
    display.show(Progress("scoring", run="llama3"))
    display.show(Progress("done", run="llama3"))
    lines = [line.split(" ", 1) for line in file.getvalue().splitlines()]
    assert all(len(stamp.split(":")) == 3 for stamp, _ in lines)
    said = [text for _, text in lines]
    assert said[0] == "llama3: training"
    assert said[1:3] == [
        "llama3: training 10 of 1,000, 35,850 tokens/s, 16:30 left",
        "llama3: training 20 of 1,000, 35,850 tokens/s, 16:20 left",
    ]
    assert said[7:] == [
        "llama3: training took 1:00, 35,850 tokens/s",
        "llama3: scoring",
        "llama3: done after 1:00",
    ]


def test_a_stage_that_says_nothing_is_told_of_all_the_same():
    clock, file = [0.0], io.StringIO()
    display = Display(lambda: clock[0], Console(file=file))
    display.show(Progress("counting", run="ngram"))
    clock[0] = 75
    display.print_when_due()
    assert file.getvalue().endswith("ngram: counting, 1:15 so far\n")


def test_a_fact_is_told_once_and_a_text_without_its_rung():
    file = io.StringIO()
    display = Display(console=Console(file=file))
    for name in ("bigram", "gpt2"):
        display.show(Progress("read", note="my.txt: 20 bytes", run=name))
    display.show(Progress("planned", note="2 layers", run="gpt2"))
    assert [line.split(" ", 1)[1] for line in file.getvalue().splitlines()] == [
        "my.txt: 20 bytes",
        "gpt2: 2 layers",
    ]


def test_quiet_leaves_out_progress_and_hints(capsys):
    set_quiet(True)
    with Display() as display:
        display.show(replace(TRAINING, run="gpt2"))
        display.show(Progress("planned", note="2 layers", run="gpt2"))
    output.print_note("a hint")
    print_next_command("generate", "runs/x")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("term", "moves"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_gets_lines(monkeypatch, term, moves):
    monkeypatch.setenv("TERM", term)
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        with Display() as display:
            display.show(replace(TRAINING, run="gpt2"))
    shown = os.read(master, 10_000)
    os.close(master)
    assert (b"\x1b[" in shown) == moves
    assert (b"gpt2: training" in shown) != moves


def test_no_color_is_obeyed(monkeypatch, folders):
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    console.print(climb_table(read_summaries(folders), folders))
    console.print(told(100, [0.0]).draw())
    assert not any(f"\x1b[{code}" in console.file.getvalue() for code in ("3", "9", "1;3"))


def test_logs_are_one_line_each_and_none_twice(capsys):
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    try:
        output.show_logs()
        output.show_logs()
        logger = logging.getLogger("rung.data.files")
        for _ in range(3):
            logger.warning("3 files\nwere skipped")
        logger.info("for your information")
        try:
            raise ValueError("inner")
        except ValueError:
            logger.exception("gpt2 failed")
        logging.getLogger("elsewhere").info("never mind")
        said = capsys.readouterr().err
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        logging.getLogger("rung").setLevel(logging.NOTSET)
    assert said == "rung: 3 files were skipped\nrung: for your information\nrung: gpt2 failed\n"


PROMPTS = [
    'It\'s "quoted" $HOME `ls` !x',
    "- a list",
    "ACGT" * 150,
    "the first line\nand the second",
    "في البدء كان",
    "\x1b[31m",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_next_line_means_what_it_says(prompt, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("my runs/it's [b]")
    print_next_command("generate", folder, *suggest_prompt({"prompt": prompt}))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    script = f"""set -- {line.split("rung", 1)[1]}\nprintf '%s\\n' "$@\""""
    words = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[0] == "generate"
    arguments = [word for word in words[1:] if word != "--"]
    assert arguments[0] == str(folder)
    assert (
        " ".join(prompt.split()).startswith(arguments[1])
        if prompt[0] != "\x1b"
        else arguments[1] == "[31m"
    )
    assert len(arguments[1]) <= 40
    assert ("--" in words) == prompt.startswith("-")


def test_rung_is_called_as_it_can_be_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "my venv" / "bin" / "rung"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert shlex.split(output.program_name()) == ["my venv/bin/rung"]
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin")
    assert output.program_name() == "rung"
    monkeypatch.setattr(sys, "argv", ["/somewhere/rung/__main__.py"])
    assert output.program_name().endswith(" -m rung")


def test_controls_are_escaped_and_text_is_not():
    assert (
        escape_controls("a\tb\r\nc\x1b]0;title\x07\x9b\u202ed")
        == "a\tb\nc\\x1b]0;title\\x07\\x9b\\u202ed"
    )
    assert escape_controls("日本語 [/b] é") == "日本語 [/b] é"


def test_any_encoding_will_do(folders, run_fork):
    """Tables, progress, hints and JSON where the encoding has no more than ASCII."""
    program = f"""
from pathlib import Path
from rung.cli.app import print_json
from rung.cli.run_tables import runs_table
from rung.cli.output import print_text, print_next_command, suggest_prompt, escape_unencodable
from rung.cli.progress import Display
from rung.cli.tables import show
from rung.progress import Progress
from rung import runs
escape_unencodable()
folder = Path({str(folders[0])!r})
with Display() as display:
    display.show(Progress("training", 1, 2, "日本語", run="gpt2"))
show(runs_table([(Path("日本語"), runs.read_record(folder))]))
print_next_command("generate", "x", *suggest_prompt({{"prompt": "日本語"}}))
print_text("é\\udce9日\\n")
print_json({{"text": "é\\udce9"}})
"""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    made = run_fork("-c", program, env=environment)
    assert made.returncode == 0, made.stderr
    assert "\\u65e5" in made.stdout and made.stdout.isascii()
    assert json.loads(made.stdout[made.stdout.index("{") :]) == {"text": "é\udce9"}
    assert "Next:   rung generate x\n" in made.stderr.replace("-c ", "rung ")


def test_time_is_short():
    assert [progress.show_time(seconds) for seconds in (0, 59.9, 60, 3661)] == [
        "0:00",
        "0:59",
        "1:00",
        "1:01:01",
    ]


def rung(*args):
    """The command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="rung")


@pytest.fixture
def corpus(tmp_path, monkeypatch, prose):
    """A folder to be in, and a text in it whose documents begin with a dash and hold what a shell
    would read.
    """
    monkeypatch.chdir(tmp_path)
    Path("it's my text.txt").write_text(prose.replace("\n\n", "\n\n- it's $HOME `x` [/b] "))
    return "it's my text.txt"


def test_the_next_line_of_a_run_does_what_it_says(corpus):
    made = rung("climb", corpus, "--rungs", "bigram", "--out", "my runs")
    assert made.exit_code == 0, made.output
    assert [line for line in made.stderr.splitlines() if ".txt: train " in line]
    following = next(line for line in made.stderr.splitlines() if line.startswith("Next:"))
    words = shlex.split(following)
    shown = rung(
        words[words.index("rung") + 1], "--max-new-tokens", 2, *words[words.index("rung") + 2 :]
    )
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith(runs.read_record(Path("my runs/bigram"))["prompt"][:10])
    quiet = rung("climb", corpus, "--rungs", "bigram", "--out", "my runs", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (made.stdout, "")


def test_a_longer_climb_that_is_advised_is_of_the_same_text():
    plan = Climb(
        corpus=["it's a.txt", "b.txt"],
        column="body",
        encoding="cp1252",
        seed=3,
        folder=Path("my runs"),
    )
    words = shlex.split(_format_longer_climb(Ladder(plan, []).plan_longer(), "gpt2"))
    given = [
        "--minutes",
        "20",
        "--rungs",
        "gpt2",
        "--column",
        "body",
        "--encoding",
        "cp1252",
        "--seed",
        "3",
    ]
    assert words[words.index("climb") + 1 :] == [
        "it's a.txt",
        "b.txt",
        *given,
        "--out",
        "my runs-longer",
    ]
    assert shlex.split(_format_longer_climb(Climb(corpus="-x.txt"), ""))[-2:] == ["--", "-x.txt"]


def test_what_came_of_a_plan_is_a_sentence():
    said = "The scaling law predicted 3.088 bits per byte of the validation text; this run reached"
    assert _compare_with_law(3.088, 2.433) == f"{said} 2.433, 21.2% lower"
    assert _compare_with_law(3.088, 3.5) == f"{said} 3.500, 13.3% higher"
    assert _compare_with_law(3.088, 3.0881) == f"{said} 3.088, as predicted"


@pytest.mark.parametrize(("name", "text"), [("nothere.txt", None), ("tiny.txt", "a few words")])
def test_no_rung_is_begun_before_the_text_is_read(name, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text:
        Path(name).write_text(text)
    made = rung("climb", name)
    assert made.exit_code == 2
    assert "llama3" not in made.stderr and "bigram" not in made.stderr
    assert "text: failed" in made.stderr
    assert not Path("runs").exists()


def test_a_runs_json_is_short_and_a_runs_own_is_whole(folders):
    many = json.loads(rung("runs", folders[0].parent, "--json").stdout)["runs"]
    assert [Path(run["folder"]) for run in many] == sorted(folders)
    assert "marks" not in many[0]
    assert json.loads(rung("runs", folders[0], "--json").stdout)["marks"]["zlib"] == 2.487


def test_help_is_readable_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    verbs = [[command.name] for command in app.registered_commands]
    for words in ([], *verbs, ["corpora"], ["corpora", "check"]):
        shown = rung(*words, "--help")
        assert shown.exit_code == 0
        assert max(map(cell_len, shown.stdout.splitlines())) <= 80
        assert "…" not in shown.stdout
    paragraph = " ".join(rung("compare", "--help").stdout.split())
    assert "document by document, with a 95% interval and how often its sign holds" in paragraph
    shown = rung("compare", "--help").stdout.splitlines()
    assert sum("interval and how often its sign holds, by" in line for line in shown) == 1


def test_the_help_of_eval_fits_on_a_screen_of_40_lines(monkeypatch):
    """With the prompt below it; the empty lines at its ends may scroll away."""
    monkeypatch.setenv("COLUMNS", "80")
    assert len(rung("eval", "--help").stdout.strip("\n ").splitlines()) <= 39


MODEL_VERBS = (
    *("eval", "score", "generate", "report", "serve", "compress", "compare", "surprisal"),
    *("novelty", "chat"),
)


@pytest.mark.parametrize("words", [*([verb] for verb in MODEL_VERBS), ["corpora", "check"]])
def test_every_verb_that_reads_a_model_says_how_it_is_loaded(words):
    shown = rung(*words, "--help").stdout
    assert all(f"{option} " in shown for option in ("--window", "--dtype", "--trust-remote-code"))


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_an_option_before_the_check_is_not_lost(option):
    made = rung("corpora", option, "check", "my.txt")
    assert (made.exit_code, made.stdout) == (2, "")
    assert f"{option} goes after check" in made.stderr


def test_ctrl_c_gives_the_line_that_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rung", "train", "gpt2", "my text.txt"])
    begun = runs.make_folder(tmp_path / "a run")
    runs.write_record(begun, {"rung": "gpt2"})
    for folder, said in (
        (begun, f"so far is saved. Go on with: rung train --out '{begun}' --resume\n"),
        (
            tmp_path / "none",
            "before anything was saved. Begin again with: rung train gpt2 'my text.txt'\n",
        ),
    ):

        def stop(folder=folder):
            with name_saved_work(folder, ""):
                raise KeyboardInterrupt

        with pytest.raises(typer.Exit) as left:
            run_or_exit(stop, "train")
        assert left.value.exit_code == 130
        assert capsys.readouterr().err.endswith(said)


def test_an_error_that_ctrl_c_caused_is_no_error():
    def fall():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("the engine's call was broken off") from error

    function = verb("nothing", "nothing")(fall)
    app.registered_commands.pop()
    with pytest.raises(typer.Exit) as left:
        function()
    assert left.value.exit_code == 130


def test_a_training_that_is_stopped_while_it_is_scored_goes_on(corpus, monkeypatch):
    def stop(recipe, folder, on_progress, began):
        runs.write_record(runs.make_folder(folder), {"rung": recipe.rung})
        on_progress(Progress("scoring", 3, 9))
        raise KeyboardInterrupt

    monkeypatch.setattr("rung.api.train.execute", stop)
    made = rung("train", "gpt2", corpus, "--steps", 5, "--out", "my run")
    assert made.exit_code == 130
    assert "gpt2: stopped after" in made.stderr
    assert made.stderr.splitlines()[-1].endswith("train --out 'my run' --resume")


def test_a_count_that_is_stopped_prints_the_line_that_goes_on_with_the_next_order(
    corpus, monkeypatch
):
    monkeypatch.setattr("rung.models.ngram.counting_settings.MIN_CHECKPOINT_SECONDS", 0.0)

    def stop(display, progress):
        if progress.note.startswith("order 3 of 5"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rung.cli.progress.Display.show", stop)
        made = rung("train", "ngram", corpus, "--out", "my run")
    assert made.exit_code == 130
    said = made.stderr.splitlines()[-1]
    assert "stopped; the work so far is saved. Go on with: " in said
    assert said.endswith("train --out 'my run' --resume")
    made = rung("train", *shlex.split(said.split(" train ")[1]))
    assert made.exit_code == 0, made.output
    assert "ngram: orders 1 to 3 are kept, going on with 4" in made.stderr
    assert runs.is_finished(Path("my run"))


def test_a_models_text_cannot_steer_a_terminal(monkeypatch):
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        output.print_text("a\x1b[2Jb\n")
    assert os.read(master, 100) == b"a\\x1b[2Jb\r\n"
    os.close(master)
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    output.print_text("a\x1b[2Jb\n")
    assert plain.getvalue() == "a\x1b[2Jb\n"


def test_an_engine_that_swallows_ctrl_c_is_stopped_all_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["rung", "train", "ngram", "my.txt", "--set", "counting.engine=spark"]
    )
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:

        def stop():
            with name_saved_work(tmp_path / "x", ""):
                os.kill(os.getpid(), signal.SIGINT)
                raise RuntimeError("the gateway is gone")

        def fail():
            with name_saved_work(tmp_path / "x", ""):
                raise RuntimeError("gone by itself")

        with pytest.raises(typer.Exit) as left:
            run_or_exit(stop, "train")
        with pytest.raises(RuntimeError, match="gone"):
            run_or_exit(fail, "train")
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.exit_code == 130
    assert (
        "Begin again with: rung train ngram my.txt --set counting.engine=spark"
        in capsys.readouterr().err
    )
