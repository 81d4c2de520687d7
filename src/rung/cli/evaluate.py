"""Verbs that measure a run: eval, score."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli.app import print_json, verb
from rung.cli.options import (
    PAIRS_HELP,
    PAIRS_METAVAR,
    ColumnOption,
    EncodingOption,
    JsonOption,
    LoadArgument,
    ReadAsOption,
    RunArgument,
    SplitOption,
    read_typed,
    resolve_corpus,
)
from rung.cli.output import silence_libraries
from rung.errors import RecipeError
from rung.files import cache_folder, check_writable_file, to_csv, write_atomically

if TYPE_CHECKING:
    from rung.evaluation.surprisal import TokenScore

# Groups of `rung eval --help`, which has each option on one line of 80 columns.
BESIDE = "Also: beside the plain score; parameters are fitted on validation text"
INSTEAD = "Instead: what brings its own text"

PerDocumentOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a CSV table with each document's cost.",
        show_default=False,
        rich_help_panel=BESIDE,
    ),
]
PairsInsteadOption = Annotated[
    str | None,
    typer.Option(
        metavar=PAIRS_METAVAR, help=PAIRS_HELP, show_default=False, rich_help_panel=INSTEAD
    ),
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Tasks of lm-evaluation-harness. Repeatable.",
        show_default=False,
        rich_help_panel=INSTEAD,
    ),
]


@verb("eval", "rung eval runs/python-docs/llama3 other.txt")
def eval_command(
    run: RunArgument,
    corpus: Annotated[
        list[str] | None,
        typer.Argument(help="Other text, - for a pipe; else its own.", show_default=False),
    ] = None,
    split: SplitOption = "test",
    documents: ReadAsOption = "",
    column: ColumnOption = "",
    encoding: EncodingOption = "",
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNG=RUN",
            help="Mixed with another run. Repeatable.",
            show_default=False,
            rich_help_panel=BESIDE,
        ),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache",
            help="With a cache of the document's own words.",
            rich_help_panel=BESIDE,
        ),
    ] = False,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Learning from each text once it is scored.",
            rich_help_panel=BESIDE,
        ),
    ] = False,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            help="Code and decode it, and print the size.",
            rich_help_panel=BESIDE,
        ),
    ] = False,
    per_document: PerDocumentOption = None,
    pairs: PairsInsteadOption = None,
    tasks: TasksOption = None,
    limit: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="So many documents of each task; 0 for all.",
            show_default=False,
            rich_help_panel=INSTEAD,
        ),
    ] = 0,
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """Score a run on held-out text: bits per byte, word and token perplexity."""
    silence_libraries()
    from rung.api.run import evaluate, load
    from rung.cli.pair_tables import pairs_table
    from rung.cli.progress import Display
    from rung.cli.score_tables import score_table, tasks_table
    from rung.cli.tables import show

    text = {"documents": documents, "column": read_typed("--column", column), "encoding": encoding}
    switches: dict[str, Any] = {"mix": mix or (), "cache": cache, "dynamic": dynamic}
    if per_document:
        check_writable_file(per_document, *(corpus or ()))
        switches["per_document"] = True
    switches["prove"] = prove
    source = resolve_corpus(corpus, cache_folder() / "stdin", on_all_ranks=False)
    opened = load(run, **load_options)
    with Display() as display:
        found = evaluate(
            opened,
            source,
            split,
            tasks=tasks or (),
            limit=limit,
            pairs=pairs,
            on_progress=display.show,
            **text,
            **switches,
        )
    if per_document:
        write_atomically(per_document, to_csv(found.pop("per_document")))
    if as_json:
        print_json(found)
    elif tasks:
        show(tasks_table(found))
    elif pairs:
        show(pairs_table(found))
    else:
        show(score_table(found["rung"], found["corpus"], found["split"], found))


@verb("score", 'rung score runs/python-docs/llama3 "Return the number of items."')
def score_command(
    run: RunArgument,
    text: Annotated[
        str, typer.Argument(help="A sentence, or - for standard input.", show_default=False)
    ] = "",
    file: Annotated[
        Path | None, typer.Option(help="Instead: all of this file, to its last line end.")
    ] = None,
    encoding: EncodingOption = "",
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """The probability of a sentence, and the surprisal of each of its tokens."""
    silence_libraries()
    from rung.api.run import load
    from rung.cli.score_tables import surprisal_table
    from rung.cli.tables import show
    from rung.evaluation.score import describe_reading

    text = _read_text(text, file, encoding)
    opened = load(run, **load_options)
    tokens = opened.surprisal(text)
    notes = describe_reading(opened.model, opened.tokenizer)
    if as_json:
        bits = sum(token.bits for token in tokens)
        facts = {"bits": bits, "probability": 2.0**-bits, "renormalized": tokens[0].renormalized}
        facts |= notes | {"tokens": list(map(_describe, tokens))}
        print_json({"run": run, "text": text, **facts})
    else:
        show(surprisal_table(tokens, notes))


def _describe(token: "TokenScore") -> dict[str, Any]:
    """A token as `--json` prints it; only models that count have an order, a count, a discount."""
    counted = {"order": token.order, "count": token.count, "discount": token.discount}
    return {
        "text": token.text,
        "bits": token.bits,
        "probability": 2**-token.bits,
        "tokens": token.tokens,
        "end": token.end,
        **{name: value for name, value in counted.items() if value is not None},
    }


def _read_text(text: str, file: Path | None, encoding: str) -> str:
    """The text that is to be scored: as it was typed, of a file, or of standard input.

    Raises `RecipeError` where none or two are named, `CorpusError` for one that cannot be read.
    """
    from rung.data.files import read_text_file, save_stdin

    if bool(text) == bool(file):
        raise RecipeError(
            'name one text: rung score RUN "A sentence.", rung score RUN --file PATH, or - for a '
            "pipe"
        )
    if text == "-":
        file = save_stdin(sys.stdin.buffer, cache_folder() / "stdin")
    if encoding and not file:
        raise RecipeError(f"--encoding is {encoding!r}, but it is of --file: leave it out")
    return read_text_file(file, encoding or None) if file else read_typed("TEXT", text)
