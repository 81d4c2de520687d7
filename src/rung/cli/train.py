"""Verbs that make runs: climb, train."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung import distributed
from rung.cli.app import verb
from rung.cli.options import (
    PAIRS_HELP,
    PAIRS_METAVAR,
    ColumnOption,
    CorpusArgument,
    DocumentsOption,
    EncodingOption,
    SeedOption,
    TokenizerOption,
    parse_settings,
    read_typed,
    resolve_corpus,
)
from rung.cli.output import (
    format_resume_command,
    print_next_command,
    print_note,
    silence_libraries,
    suggest_prompt,
)
from rung.files import cache_folder

if TYPE_CHECKING:
    from rung.api.ladder import Ladder
    from rung.api.run import Run
    from rung.workflows.climb import Climb


@verb("climb", "rung climb my.txt --minutes 10", on_all_ranks=True)
def climb_command(
    corpus: CorpusArgument = None,
    minutes: Annotated[
        float | None, typer.Option(help="For all of it together; 5 by default.")
    ] = None,
    rungs: Annotated[str, typer.Option(help="Which rungs, comma-separated; all by default.")] = "",
    tokenizer: TokenizerOption = "bpe",
    documents: DocumentsOption = "paragraphs",
    column: ColumnOption = "",
    encoding: EncodingOption = "",
    out: Annotated[
        Path | None, typer.Option(help="Where the runs go; runs/CORPUS by default.")
    ] = None,
    seed: SeedOption = 0,
    pairs: Annotated[
        str | None, typer.Option(metavar=PAIRS_METAVAR, help=PAIRS_HELP, show_default=False)
    ] = None,
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
    silence_libraries()
    from rung.api.climb import climb
    from rung.cli.progress import Display

    source = resolve_corpus(corpus, out.parent if out else Path("runs"))
    text = {"documents": documents, "column": read_typed("--column", column), "encoding": encoding}
    models: dict[str, Any] = {"minutes": minutes, "rungs": rungs, "tokenizer": tokenizer}
    models |= {"seed": seed, "pairs": pairs}
    swaps = {"between": between, "steps": steps, "seeds": seeds}
    with Display() as display:
        ladder = climb(
            source, out=out, on_progress=display.show, began=began, **text, **models, **swaps
        )
    if distributed.is_main():
        (_print_swaps if between else _print_ladder)(ladder, rungs)


def _print_ladder(ladder: "Ladder", rungs: str) -> None:
    from rung import runs
    from rung.cli.run_tables import climb_table
    from rung.cli.tables import show
    from rung.report.summaries import read_summaries

    rows = read_summaries(ladder.folders)
    show(climb_table(rows, ladder.folders))
    print_note(f"\nReport: {ladder.report}")
    # A rung in doubt had too little time: the best of the others is no advice then.
    doubted = {row.name for row in rows if row.doubt and row.bits_per_byte}
    if any(run.folder.name in doubted and not runs.lacks_text(run.record) for run in ladder):
        print_note(f"Next:   {_format_longer_climb(ladder.plan_longer(), rungs)}")
    elif best := ladder.best:
        print_next_command("generate", best.folder, *suggest_prompt(best.record))


def _format_longer_climb(plan: "Climb", rungs: str) -> str:
    """Write the command of a climb."""
    tokenizer = next(iter(plan.tokenizer.values()))
    options = {
        "--minutes": f"{plan.minutes:g}",
        "--rungs": rungs,
        "--tokenizer": "" if tokenizer == "bpe" else tokenizer,
        "--documents": "" if plan.documents == "paragraphs" else plan.documents,
        "--column": plan.column or "",
        "--encoding": plan.encoding or "",
        "--seed": plan.seed or "",
        "--pairs": plan.pairs or "",
        "--out": plan.folder,
    }
    given = [word for name, value in options.items() if value for word in (name, value)]
    corpora = [plan.corpus] if isinstance(plan.corpus, str) else plan.corpus
    if any(path.startswith("-") for path in corpora):
        return format_resume_command("climb", *given, "--", *corpora)
    return format_resume_command("climb", *corpora, *given)


def _print_swaps(ladder: "Ladder", _rungs: str) -> None:
    from rung.cli.run_tables import swaps_table
    from rung.cli.tables import show
    from rung.report.swaps import read_swaps

    show(swaps_table(read_swaps(ladder.folders), ladder.folders))
    print_note(f"\nReport: {ladder.report}")


@verb(
    "train",
    "rung train llama3 my.txt --minutes 10 --set hidden_size=256",
    on_all_ranks=True,
    resumes=True,
    former={
        "--carry-state": "carry_state=true",
        "--engine": "counting.engine",
        "--memory": "counting.memory",
        "--lora": "lora",
    },
)
def train_command(
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
    documents: DocumentsOption = "",
    column: ColumnOption = "",
    encoding: EncodingOption = "",
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
        typer.Option("--from", help="Go on from this run, model folder or Hub id."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what memory, disk and time it takes.")
    ] = False,
) -> None:
    """Train (or, for counts, fit) one rung, and score it."""
    began = time.perf_counter()  # of the minutes
    silence_libraries()
    from rung.api.train import estimate, train
    from rung.cli.progress import Display

    # A run that goes on has its text. Only where --out does not say which folder is its own, does
    # the text that is piped in.
    beside = cache_folder() / "stdin" if dry_run else out.parent if out else Path("runs")
    source = "" if resume and out else resolve_corpus(corpus, beside)
    text = {"documents": documents, "column": read_typed("--column", column), "encoding": encoding}
    length = {"steps": steps, "minutes": minutes, "seed": seed}
    settings: dict[str, Any] = {"recipe": recipe, "tokenizer": tokenizer, "base": from_}
    settings |= {"set": parse_settings(set_), "out": out, "resume": resume, **text, **length}
    with Display() as display:
        if dry_run:
            found = estimate(rung, source, on_progress=display.show, **settings)
        else:
            run = train(rung, source, on_progress=display.show, began=began, **settings)
    if distributed.is_main():
        _print_estimate(found) if dry_run else _print_run(run)


def _print_estimate(found: dict[str, str]) -> None:
    from rung.cli.tables import names_table, show

    show(names_table(f"{found.pop('rung')} takes, roughly", found))


def _print_run(run: "Run") -> None:
    """Print the scores of a run, what to know of them, and the next command."""
    from rung import runs
    from rung.cli.score_tables import score_table
    from rung.cli.tables import show

    record, corpus = run.record, run.record["corpus"]["name"]
    if run.scores:
        show(score_table(record["rung"], corpus, "test", run.scores))
    else:
        print_note(f"No score: nothing of {corpus} was held out, all of it was counted")
    if "error" in (plan := record.get("plan", {})):
        print_note(_compare_with_law(plan["bits_per_byte"], plan["reached"]))
    if busyness := runs.describe_busy_machine(record):
        print_note(busyness)
    if record["recipe"].get("lora"):
        trained = record["training"]["trainable_parameters"]
        beside = f"{record['parameters']:,} parameters: {run.folder}/adapter"
        print_note(f"\n{trained:,} trained beside {beside}")
    print_note("")
    if doubt := runs.explain_doubtful_score(record):
        more = "text" if runs.lacks_text(record) else "--minutes, or more --steps"
        print_note(f"{run.folder}: {doubt}; give it more {more}")
    else:
        print_next_command("generate", run.folder, *suggest_prompt(record))


def _compare_with_law(predicted: float, reached: float) -> str:
    """Compare what the scaling law predicted of a run with what it reached, in words."""
    off = reached / predicted - 1
    how = (
        f"{abs(off):.1%} {'lower' if off < 0 else 'higher'}"
        if abs(off) >= 0.0005
        else "as predicted"
    )
    return (
        f"The scaling law predicted {predicted:.3f} bits per byte of the validation text; this run "
        f"reached {reached:.3f}, {how}"
    )
