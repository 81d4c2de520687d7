"""Verbs that show and ship runs: export, report, runs, sizes, tokenizers."""

from pathlib import Path
from typing import Annotated

import typer

from rung.cli.app import print_json, verb
from rung.cli.options import (
    JsonOption,
    LoadArgument,
)
from rung.cli.output import format_command, print_note, silence_libraries


@verb("export", "rung export runs/python-docs/ngram model.arpa.gz --to arpa")
def export_command(
    run: Annotated[
        str,
        typer.Argument(
            help="A run folder, a Hugging Face model folder, one in Meta's format, or an ARPA file."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The file, or for hf and meta the folder, to write.")],
    to: Annotated[str, typer.Option(help="The format: arpa, gguf, hf or meta.")] = "arpa",
    type: Annotated[str, typer.Option(help="Of gguf: f32, f16 or q8_0.", show_default="f16")] = "",
) -> None:
    """Write a run in another tool's format."""
    silence_libraries()
    from rung.export.export import export as write

    found = write(run, to, out, type)
    print_note(f"Wrote {out}" + (f": {found}" if found else ""))


@verb("report", "rung report runs/python-docs --out report.html")
def report_command(
    run: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, folders that hold runs; model folders and Hub ids to score beside."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    *,
    load_options: LoadArgument,
) -> None:
    """One page that compares runs; it opens offline. Other models are scored on their test text."""
    silence_libraries()
    from rung.cli.progress import Display
    from rung.workflows.report import report_runs

    with Display() as display:
        report_runs(run, out, load_options, display.show)
    print_note(f"Report: {out}")


@verb("runs", "rung runs")
def runs_command(
    root: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """The runs there are, and their scores; with --json the whole record of a run that is named."""
    from rung import runs
    from rung.cli.run_tables import runs_table, summarize_run
    from rung.cli.tables import show

    found = [(folder, runs.read_record_or_failure(folder)) for folder in runs.find_runs(root)]
    if as_json and (root / runs.RECORD).exists():
        print_json({"folder": str(root), **runs.read_record(root)})
    elif as_json:
        print_json({"runs": [summarize_run(folder, record) for folder, record in found]})
    elif found:
        show(runs_table(found))
    else:
        print_note(f"no runs below {root}. Make some: {format_command('climb')}")


@verb("sizes", "rung sizes")
def sizes_command(as_json: JsonOption = False) -> None:
    """The sizes of GPT-2 and Llama 3 that can be named wherever a rung is."""
    from rung.cli.tables import show, sizes_table
    from rung.models.sizes import SIZES

    if as_json:
        print_json({"sizes": [size.as_dict() | {"name": name} for name, size in SIZES.items()]})
    else:
        show(sizes_table(SIZES))


@verb("tokenizers", "rung tokenizers")
def tokenizers_command(as_json: JsonOption = False) -> None:
    """The tokenizers that can be named."""
    from rung.cli.tables import names_table, show
    from rung.data.tokenizer_training import TOKENIZERS

    print_json(TOKENIZERS) if as_json else show(names_table("tokenizer", TOKENIZERS))
