"""Verbs that make runs: climb, train."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rung import distributed
from rung.cli.app import (
    Column,
    CorpusArgument,
    Documents,
    Encoding,
    Seed,
    TokenizerOption,
    check_given,
    name_corpus,
    read_typed,
    resumable,
    verb,
)
from rung.cli.output import say, say_next, suggest_prompt, write_resuming
from rung.device import cache_folder
from rung.progress import for_run


@verb("rung climb my.txt --minutes 10", spreads=True)
def climb(
    corpus: CorpusArgument = None,
    minutes: Annotated[
        float | None, typer.Option(help="For all of it together; 5 by default.")
    ] = None,
    rungs: Annotated[str, typer.Option(help="Which rungs, comma-separated; all by default.")] = "",
    tokenizer: TokenizerOption = "bpe",
    documents: Documents = "paragraphs",
    column: Column = "",
    encoding: Encoding = "",
    out: Annotated[
        Path | None, typer.Option(help="Where the runs go; runs/CORPUS by default.")
    ] = None,
    seed: Seed = 0,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(help="gpt2 llama3: what each of the six swaps between them buys."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="With --between: steps of each run; 800 by default.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="With --between: runs of each model; 3 by default.")
    ] = None,
) -> None:
    """Every rung on one text: one table, one report."""
    began = time.perf_counter()  # of the minutes: importing the libraries takes some seconds
    from rung.cli.results import make_quiet

    make_quiet()
    source = name_corpus(corpus, out.parent if out else Path("runs")) or "python-docs"
    text: dict[str, Any] = {
        "corpus": source,
        "documents": documents,
        "tokenizer": _tokenizer_spec(tokenizer),
    }
    text |= {"column": read_typed("--column", column) or None, "encoding": encoding or None}
    check_given("--between has no", {"--minutes": minutes, "--rungs": rungs} if between else {})
    check_given("only --between has", {} if between else {"--steps": steps, "--seeds": seeds})
    if between:
        folder = out or Path("runs") / "-".join((_slug(source), *between))
        many = range(seed, seed + (3 if seeds is None else seeds))
        _climb_swaps(text | {"between": between, "seeds": tuple(many), "folder": folder}, steps)
    else:
        folder = out or Path("runs") / _slug(source)
        _climb_ladder(text | {"seed": seed, "folder": folder}, rungs, minutes, began)


def _climb_ladder(
    settings: dict[str, Any], rungs: str, minutes: float | None, began: float
) -> None:
    """Climb with bars, and show the ladder."""
    from rung import runs
    from rung.cli.fitted_table import show
    from rung.cli.progress import Display
    from rung.cli.results import climb_table
    from rung.report.summaries import read_summaries
    from rung.workflows.climb import REPORT, Climb
    from rung.workflows.climb import climb as climb_ladder

    if rungs:
        settings["rungs"] = tuple(name.strip() for name in rungs.split(","))
    if minutes is not None:
        settings["minutes"] = minutes
    plan = Climb(**settings)
    folder = plan.folder
    with resumable(), Display() as display:
        folders = climb_ladder(plan, display.show, began)
    if not distributed.is_main():
        return
    rows = read_summaries(folders)
    show(climb_table(rows, folders))
    say(f"\nReport: {folder / REPORT}")
    scored = [row for row in rows if row.bits_per_byte]
    if any(row.doubt for row in scored):  # the best of the others is so for want of time alone
        say(f"Next:   {_write_longer(plan, rungs)}")
    elif scored:
        best = folder / min(scored, key=lambda row: row.bits_per_byte or 0.0).name
        say_next("generate", best, *suggest_prompt(runs.read_record(best)))


def _write_longer(plan: Any, rungs: str) -> str:
    """The command of the same climb with four times the minutes, in a folder beside."""
    tokenizer = next(iter(plan.tokenizer.values()))
    options = {
        "--minutes": f"{4 * plan.minutes:g}",
        "--rungs": rungs,
        "--tokenizer": "" if tokenizer == "bpe" else tokenizer,
        "--documents": "" if plan.documents == "paragraphs" else plan.documents,
        "--column": plan.column or "",
        "--encoding": plan.encoding or "",
        "--seed": plan.seed or "",
        "--out": f"{plan.folder}-longer",
    }
    given = [word for name, value in options.items() if value for word in (name, value)]
    corpora = [plan.corpus] if isinstance(plan.corpus, str) else plan.corpus
    if any(path.startswith("-") for path in corpora):
        return write_resuming("climb", *given, "--", *corpora)
    return write_resuming("climb", *corpora, *given)


def _climb_swaps(settings: dict[str, Any], steps: int | None) -> None:
    """Make every swap's runs with bars, and show what each buys."""
    from rung.cli.fitted_table import show
    from rung.cli.progress import Display
    from rung.cli.results import swaps_table
    from rung.report.swaps import read_swaps
    from rung.workflows.climb import REPORT
    from rung.workflows.climb_swaps import SwapClimb, climb_swaps

    plan = SwapClimb(**settings | ({} if steps is None else {"steps": steps}))
    with resumable(), Display() as display:
        folders = climb_swaps(plan, display.show)
    if not distributed.is_main():
        return
    show(swaps_table(read_swaps(folders), folders))
    say(f"\nReport: {plan.folder / REPORT}")


@verb(
    "rung train llama3 my.txt --minutes 10 --set hidden_size=256",
    spreads=True,
    former={
        "--carry-state": "carry_state=true",
        "--engine": "counting.engine",
        "--memory": "counting.memory",
        "--lora": "lora",
    },
)
def train(
    rung: Annotated[
        str,
        typer.Argument(help="bigram, ngram, rnn, rnn-attention, gpt2, llama3, or of `rung sizes`."),
    ] = "",
    corpus: CorpusArgument = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe to start from (recipes/*.yaml).")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="A kind (see `rung tokenizers`) or a folder.")
    ] = "",
    documents: Documents = "",
    column: Column = "",
    encoding: Encoding = "",
    steps: Annotated[int | None, typer.Option(help="Train so many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train so long; 5 by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/CORPUS-RUNG by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Where randomness starts; 0 by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: key=value. Repeatable.")
    ] = None,
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="Go on from this run, model folder or Hub id.",
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what memory, disk and time it takes.")
    ] = False,
) -> None:
    """Train (or, for counts, fit) one rung, and score it."""
    began = time.perf_counter()  # of the minutes
    from rung.cli.results import make_quiet

    make_quiet()
    given: dict[str, Any] = {
        "rung": rung,
        # A run that goes on has its text; only where --out does not, standard input says which
        # folder is its own.
        "corpus": "" if resume and out else name_corpus(corpus, _find_beside(out, dry_run)),
        "documents": documents,
        "column": read_typed("--column", column),
        "encoding": encoding,
        "seed": seed,
        "tokenizer": tokenizer and _tokenizer_spec(tokenizer),
        "base": from_,
        "steps": steps,
        "minutes": minutes,
    }
    given = {key: value for key, value in given.items() if value not in ("", None)}
    (_foresee if dry_run else _make_run)(*_plan_run(recipe, given, set_ or [], out, resume), began)


def _find_beside(out: Path | None, dry_run: bool) -> Path:
    """The folder that standard input is kept in: beside the run, if there will be one."""
    if dry_run:
        return cache_folder() / "stdin"
    return out.parent if out else Path("runs")


def _plan_run(
    recipe: Path | None, given: dict[str, Any], overrides: list[str], out: Path | None, resume: bool
) -> tuple[Any, Path]:
    """The recipe, begun before or made now, and the run's folder."""
    from rung.models.sizes import SIZES
    from rung.recipe import make_recipe
    from rung.workflows.train import check_unused

    overrides = [read_typed("--set", override) for override in overrides]
    if resume:
        folder = (
            out
            or Path("runs") / f"{_slug(given.get('corpus', 'python-docs'))}-{given.get('rung', '')}"
        )
        beyond = given | {"recipe": recipe, "set": overrides}
        return _read_begun(folder, beyond), folder
    page = _fill_page(recipe, given)
    made = make_recipe(page, overrides)
    folder = (
        out
        or Path("runs")
        / f"{_slug(made.corpus)}-{page['rung'] if page['rung'] in SIZES else made.rung}"
    )
    distributed.on_main(check_unused)(folder)
    return made, folder


@distributed.on_main
def _read_begun(folder: Path, given: dict[str, Any]) -> Any:
    """The recipe of the run to resume; what was given beyond the rung and the corpus, which find
    it, is refused.

    But for the rows of a step: another number of processes may need others.
    """
    from rung.recipe import read_override
    from rung.workflows.train import read_begun

    overrides = dict(map(read_override, given["set"]))
    if batch := overrides.keys() == {"global_batch_size"}:
        given = {key: value for key, value in given.items() if key != "set"}
    beyond = {
        f"--{key.replace('_', '-')}": value
        for key, value in given.items()
        if key not in ("rung", "corpus")
    }
    check_given("--resume goes on with the run's own recipe:", beyond)
    return read_begun(folder, overrides["global_batch_size"] if batch else None)


def _fill_page(recipe: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """The recipe's page with what was given on the command line in its place."""
    from rung.recipe import leave_length_open, read_recipe

    page = read_recipe(recipe) if recipe else {}
    if {"steps", "minutes"} & set(given):
        page = leave_length_open(page)
    return page | given


def _foresee(recipe: Any, folder: Path, _began: float) -> None:
    """Show what the run would take."""
    from rung.cli.fitted_table import show
    from rung.cli.progress import Display
    from rung.cli.results import names_table
    from rung.workflows.estimate import foresee

    with Display() as display:
        found = distributed.on_main(foresee)(recipe, folder, for_run(recipe.rung, display.show))
    if distributed.is_main():
        show(names_table(f"{recipe.rung} takes, roughly", found))


def _make_run(recipe: Any, folder: Path, began: float) -> None:
    """Make it with bars, and show what it scored."""
    from rung import runs
    from rung.cli.fitted_table import show
    from rung.cli.progress import Display
    from rung.cli.results import score_table
    from rung.workflows.train import execute

    with resumable("train", folder), Display() as display:
        if not execute(recipe, folder, for_run(recipe.rung, display.show), began):
            raise KeyboardInterrupt
    if not distributed.is_main():
        return
    record = runs.read_record(folder)
    if "test" in record["scores"]:
        show(
            score_table(record["rung"], record["corpus"]["name"], "test", record["scores"]["test"])
        )
    else:
        say(f"No score: nothing of {record['corpus']['name']} was held out, all of it was counted")
    if "reached" in (plan := record.get("plan", {})):
        say(_compare_with_law(plan["bits_per_byte"], plan["reached"]))
    if busyness := runs.describe_busy_machine(record):
        say(busyness)
    if recipe.lora:
        trained = record["training"]["trainable_parameters"]
        say(f"\n{trained:,} trained beside {record['parameters']:,} parameters: {folder}/adapter")
    say("")
    if doubt := runs.explain_doubtful_score(record):
        say(f"{folder}: {doubt}; give it more --minutes, or more --steps")
    else:
        say_next("generate", folder, *suggest_prompt(record))


def _compare_with_law(predicted: float, reached: float) -> str:
    """What the scaling law said of a run before it began, and what came of it."""
    off = reached / predicted - 1
    how = (
        f"{abs(off):.1%} {'lower' if off < 0 else 'higher'}"
        if abs(off) >= 0.0005
        else "as predicted"
    )
    return (
        f"The scaling law predicted {predicted:.3f} bits per byte of the validation text; this run "
        f"reached "
        f"{reached:.3f}, {how}"
    )


def _tokenizer_spec(name: str) -> dict[str, Any]:
    from rung.data.tokenizer_training import TOKENIZERS

    return {"kind": name} if name in TOKENIZERS or not Path(name).exists() else {"path": name}


def _slug(source: str | list[str]) -> str:
    """What the runs' folder is called after a corpus; without what is not UTF-8."""
    if not isinstance(source, str):
        return _slug(source[0]) + (f"-and-{len(source) - 1}-more" if len(source) > 1 else "")
    path = Path(source).expanduser()
    corpus = source.encode(errors="replace").decode()
    if path.exists():
        path = path.resolve()
        name = path.parent.name if path.name == "train" else path.name
        return name.encode(errors="replace").decode().split(".")[0].replace("?", "_") or "text"
    return (
        "".join(c if c.isalnum() or c in "-_." else "-" for c in corpus.removeprefix("hf:")).strip(
            "-"
        )
        or "text"
    )
