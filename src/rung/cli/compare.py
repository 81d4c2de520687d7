"""The verb that compares models on one text: compare."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rung.cli.app import print_json, verb
from rung.cli.options import (
    ColumnOption,
    EncodingOption,
    JsonOption,
    LoadArgument,
    ReadAsOption,
    SplitOption,
    read_typed,
    resolve_corpus,
)
from rung.cli.output import (
    escape_controls,
    print_next_command,
    print_note,
    silence_libraries,
)
from rung.errors import RecipeError, did_you_mean
from rung.files import cache_folder, to_csv
from rung.model_files import CONFIG, RECORD

if TYPE_CHECKING:
    from rung.api.compare import Comparison
    from rung.cli.tables import FittedTable

TABLE_FORMATS = ("text", "markdown", "latex", "csv", "json")


@verb("compare", "rung compare runs/python-docs/ngram runs/python-docs/llama3")
def compare_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN ... [TEXT]",
            help="Runs, model folders or Hub ids, and after them the text, if it is not the "
            "runs' own: files, a folder without a model, or a name of `rung corpora`.",
            show_default=False,
        ),
    ],
    split: SplitOption = "test",
    documents: ReadAsOption = "",
    column: ColumnOption = "",
    encoding: EncodingOption = "",
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help=f"{', '.join(TABLE_FORMATS)}.")
    ] = "text",
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """Score models on the same documents, and compare each with the first.

    The difference in bits per byte is paired, document by document, with a 95% interval and how
    often its sign holds, by bootstrap. Runs whose recipes differ in the seed alone are one model.
    """
    silence_libraries()
    if form not in TABLE_FORMATS:
        raise RecipeError(f"--format is {form!r}: {did_you_mean(form, TABLE_FORMATS)}")
    from rung.api.compare import compare
    from rung.api.run import load
    from rung.cli.progress import Display
    from rung.cli.tables import format_table, show

    models, text = _split_names(names)
    reading = {"documents": documents, "column": read_typed("--column", column)}
    source = resolve_corpus(text, cache_folder() / "stdin", on_all_ranks=False)
    with Display() as display:
        found = compare(
            *(load(model, **load_options) for model in models),
            corpus=source,
            split=split,
            on_progress=display.show,
            encoding=encoding,
            **reading,
        )
    if as_json or form == "json":
        print_json(found.as_dict())
    elif form == "csv":
        print(to_csv(_list_columns(found)), end="")
    elif form == "text":
        show(_comparison_table(found))
        best = min(found.models, key=lambda model: model["bits_per_byte"])
        print_note("")
        print_next_command("generate", best["runs"][0])
    else:
        print(escape_controls(format_table(_comparison_table(found), form)))  # type: ignore[arg-type]


def _split_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models, and the text that is named after them.

    Raises `RecipeError` for fewer than two models, and for one that is named after a text.
    """
    at = next((place for place, name in enumerate(names) if _is_text(name)), len(names))
    models, text = list(names[:at]), list(names[at:])
    if late := [name for name in text if not _is_text(name)]:
        raise RecipeError(f"{late[0]} is named after the text {text[0]}: name the models first")
    if len(models) < 2:
        no_model = f", and at {text[0]} there is no model" if text else ""
        raise RecipeError(
            f"two models or more are compared, and named {'is' if models else 'are'} "
            f"{models[0] if models else 'none'}{no_model}: rung compare RUN RUN [TEXT]"
        )
    return models, text


def _is_text(name: str) -> bool:
    """Whether a name is that of a text: a corpus, a file, a glob, a folder without a model."""
    from rung.data.corpus import is_path

    path = Path(name).expanduser()
    if name in ("", "-") or not is_path(name):
        return True
    if path.is_dir():
        return not any((path / file).exists() for file in (CONFIG, RECORD))
    return path.exists() or glob.has_magic(name)


def _comparison_table(found: "Comparison") -> "FittedTable":
    from rung.api.compare import COMPARISON_HEADS
    from rung.cli.tables import FittedTable

    table = FittedTable(found.title, title_style="bold")
    table.add_column(COMPARISON_HEADS[0], overflow="fold")
    table.add_figures(*COMPARISON_HEADS[1:])
    for cells in found.rows:
        table.add_cells(*cells)
    table.caption = escape_controls("\n".join(found.notes))
    return table


def _list_columns(found: "Comparison") -> list[dict[str, object]]:
    """The figures of each model, all with the same keys."""
    keys = dict.fromkeys(key for model in found.models for key in model)
    text = {key: value for key, value in found.as_dict().items() if key != "models"}
    return [text | {key: model.get(key) for key in keys} for model in found.models]
