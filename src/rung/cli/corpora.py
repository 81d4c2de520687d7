"""The verb that lists corpora and checks them: corpora, corpora check."""

from typing import Annotated

import typer

from rung.cli.app import app, print_json, verb
from rung.cli.options import (
    ColumnOption,
    CorpusArgument,
    EncodingOption,
    JsonOption,
    LoadArgument,
    ReadAsOption,
    read_typed,
    resolve_corpus,
)
from rung.cli.output import print_next_command, print_note, silence_libraries
from rung.errors import RecipeError
from rung.files import cache_folder

corpora = typer.Typer(rich_markup_mode="rich")
app.add_typer(corpora, name="corpora")


@verb("", "rung corpora", group=corpora)
def corpora_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """The corpora that can be named; `rung corpora check` compares the splits of one."""
    if name := context.invoked_subcommand:
        names = {"as_json": "--json", "quiet": "--quiet"}
        if given := [option for key, option in names.items() if context.params[key]]:
            raise RecipeError(f"{given[0]} goes after {name}: rung corpora {name} {given[0]}")
        return
    from rung.cli.tables import names_table, show
    from rung.data.corpus import CORPORA

    print_json(CORPORA) if as_json else show(names_table("corpus", CORPORA))


@verb("check", "rung corpora check my.txt --run runs/my-llama3", group=corpora)
def check_command(
    corpus: CorpusArgument = None,
    run: Annotated[
        str,
        typer.Option(help="Score this run with and without the documents that overlap."),
    ] = "",
    span: Annotated[
        int | None,
        typer.Option(
            min=1, help="The words of a span that counts; 13 by default.", show_default=False
        ),
    ] = None,
    documents: ReadAsOption = "",
    column: ColumnOption = "",
    encoding: EncodingOption = "",
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """How much of a corpus's test split stands in its training split, and what that is worth.

    With --run the training text is that of the run, and its own test split is checked where no
    corpus is named.
    """
    silence_libraries()
    from rung.api.corpora import check_corpus
    from rung.api.run import load
    from rung.cli.overlap_tables import show_overlap
    from rung.cli.progress import Display

    text = {"documents": documents, "column": read_typed("--column", column), "encoding": encoding}
    if any(load_options.values()) and not run:
        raise RecipeError(
            "--window, --dtype and --trust-remote-code say how --run is loaded, and none is named: "
            "leave them out"
        )
    source = resolve_corpus(corpus, cache_folder() / "stdin", on_all_ranks=False)
    with Display() as display:
        opened = load(run, **load_options) if run else ""
        found = check_corpus(source, run=opened, span=span, on_progress=display.show, **text)
    if as_json:
        print_json(found)
        return
    show_overlap(found)
    print_note("")
    if not isinstance(opened, str) and opened.record.get("recipe"):
        print_next_command("novelty", run)
    elif not run:
        print_next_command("climb", *(corpus or ["python-docs"]))
