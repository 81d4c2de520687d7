"""The options that verbs share, and how text that was typed is read."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rung import distributed
from rung.cli.output import print_note, replace_argument
from rung.errors import RecipeError

SURROGATE = re.compile("[\ud800-\udfff]")

CorpusArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="A name (see `rung corpora`), hf:ORG/NAME, paths, or - for standard input; "
        "python-docs by default.",
        show_default=False,
    ),
]
READING_PANEL = "How the text is read"  # a group of options in the help of a verb
ColumnOption = Annotated[
    str,
    typer.Option(
        help="The text column of tables; text, content, document or page by default.",
        rich_help_panel=READING_PANEL,
    ),
]
DocumentsOption = Annotated[
    str,
    typer.Option(
        help="What a document is in plain text: lines, paragraphs or file.",
        rich_help_panel=READING_PANEL,
    ),
]
EncodingOption = Annotated[
    str,
    typer.Option(help="The encoding of files that are not UTF-8.", rich_help_panel=READING_PANEL),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else.")
]
PAIRS_METAVAR = "FILE|FOLDER"
PAIRS_HELP = "Minimal pairs: BLiMP's, or a table of good, bad."
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress and no hints."),
]
RunArgument = Annotated[str, typer.Argument(help="A run or model folder or Hub id.")]
LOADING_PANEL = "How the model is loaded"
WindowOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens read at once; its own by default.",
        show_default=False,
        rich_help_panel=LOADING_PANEL,
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16; or as stored.",
        show_default=False,
        rich_help_panel=LOADING_PANEL,
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the code that comes with the model.",
        rich_help_panel=LOADING_PANEL,
    ),
]
# The argument of a verb that names a model: what `rung.load` takes of `--window`, `--dtype` and
# `--trust-remote-code`, which every such verb has.
LoadArgument = dict[str, Any]
LOADS = "load_options"  # the name of that argument
LOAD_OPTIONS: dict[str, tuple[Any, Any]] = {
    "window": (WindowOption, None),
    "dtype": (DtypeOption, ""),
    "trust_remote_code": (TrustOption, False),
}
SplitOption = Annotated[
    str, typer.Option(help="train, validation or test.", rich_help_panel=READING_PANEL)
]
ReadAsOption = Annotated[
    str,
    typer.Option(
        "--documents",
        help="lines, paragraphs or file: what a document is.",
        rich_help_panel=READING_PANEL,
    ),
]
SeedOption = Annotated[int, typer.Option(help="Where randomness starts.")]
TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="A kind (see `rung tokenizers`) or a folder.")
]


def read_typed(name: str, text: str) -> str:
    """Decode typed text, an argument or a line, as UTF-8 whatever the locale is.

    Bytes that the locale's encoding does not have come from Python as lone surrogates. The names of
    files stay as they are typed. Raises `RecipeError` for bytes that are not UTF-8.
    """
    if not SURROGATE.search(text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError as error:
        at, byte = error.start, error.object[error.start]
        raise RecipeError(
            f"{name} is not UTF-8: byte {at} is 0x{byte:02x}; write it in UTF-8"
        ) from error
    except UnicodeEncodeError as error:  # from no byte
        raise RecipeError(
            f"{name} holds half a character (a lone surrogate): write it in UTF-8"
        ) from error


def resolve_corpus(
    given: list[str] | None, beside: Path, *, on_all_ranks: bool = True
) -> str | list[str]:
    """The corpus as it was named, or "" where none was.

    Standard input (-) is kept in a file in the folder `beside`. With `on_all_ranks` all processes
    call this, and the main one reads. Raises `RecipeError` for an empty name.
    """
    from rung.data.files import save_stdin

    names = list(given or [])
    if "" in names:
        raise RecipeError(
            "the corpus is an empty text, as of a variable that is not set: name one (`rung "
            "corpora`)"
        )
    if "-" in names:
        if sys.stdin.isatty():
            print_note("Type the text; Ctrl-D ends it.")
        keep = distributed.on_main(save_stdin) if on_all_ranks else save_stdin
        path = str(keep(sys.stdin.buffer, beside))
        if on_all_ranks:
            print_note(f"Standard input is kept in {path}")
        replace_argument("-", path)
        names = [path if name == "-" else name for name in names]
    return names[0] if len(names) == 1 else names or ""


def parse_settings(given: list[str] | None) -> dict[str, Any]:
    """The settings of `--set key=value`. Raises `RecipeError` for what is not that."""
    from rung.recipe import read_override

    return dict(read_override(read_typed("--set", each)) for each in given or [])
