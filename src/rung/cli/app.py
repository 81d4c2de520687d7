"""The app and what all its verbs share: options, exit codes, and errors in one line."""

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rung import distributed
from rung.cli.output import (
    can_print,
    escape_controls,
    format_resume_command,
    print_note,
    replace_argument,
    set_quiet,
)
from rung.errors import RecipeError, RungError

SURROGATE = re.compile("[\ud800-\udfff]")

app = typer.Typer(
    name="rung",
    help="Climb from a bigram to Llama 3 on your own text.",
    epilog="Start here: rung climb",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CorpusArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="A name (see `rung corpora`), hf:ORG/NAME, paths, or - for standard input; "
        "python-docs by default.",
        show_default=False,
    ),
]
ColumnOption = Annotated[
    str, typer.Option(help="The text column of tables; text, content, document or page by default.")
]
DocumentsOption = Annotated[
    str, typer.Option(help="What a document is in plain text: lines, paragraphs or file.")
]
EncodingOption = Annotated[
    str, typer.Option(help="The encoding of files that are not UTF-8 and have no byte-order mark.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else.")
]
PairsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="Minimal pairs to score, as BLiMP has them or a table with columns good and bad.",
        show_default=False,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors and the result, no progress and no hints."),
]
RunArgument = Annotated[
    str, typer.Argument(help="A run folder, a Hugging Face model folder, or a Hub id.")
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens to read at once, in the place of the model's own window.", show_default=False
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="The weights' type: float32, bfloat16 or float16; as stored by default.",
        show_default=False,
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")
]
SplitOption = Annotated[str, typer.Option(help="train, validation or test.")]
ReadAsOption = Annotated[
    str, typer.Option("--documents", help="What a document is: lines, paragraphs or file.")
]
SeedOption = Annotated[int, typer.Option(help="Where randomness starts.")]
TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="A kind (see `rung tokenizers`) or a folder.")
]


def verb(
    name: str,
    example: str,
    *,
    group: typer.Typer = app,
    on_all_ranks: bool = False,
    former: dict[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command, whose errors become one line and an exit code.

    The code is 2 for a user's mistake, 1 for a failing system, 130 after Ctrl-C. Every command
    takes `--quiet`. Under `torchrun` only the main process runs it, or all with `on_all_ranks`.
    `former` has options that are settings now, and the setting's key: to give one is a mistake,
    and the line says the new way. A command of a verb that has several stands in its `group`; that
    without a name is the verb itself.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, quiet: bool = False, **kwargs: Any) -> None:
            set_quiet(quiet)
            if not (on_all_ranks or distributed.is_main()):
                return
            _run_or_exit(functools.partial(function, *args, **kwargs))

        guarded.__signature__ = _with_quiet(function)  # type: ignore[attr-defined]
        guarded.__doc__ = _join_lines(inspect.getdoc(function) or "")
        epilog = f"Example: {example}"
        if not name:
            return group.callback(invoke_without_command=True, epilog=epilog)(guarded)
        command = _refuse_former(former) if former else None
        return group.command(name, cls=command, epilog=epilog)(guarded)

    return register


def _run_or_exit(command: Callable[[], None]) -> None:
    """Run a command; what goes wrong becomes one line and an exit code, as `verb` says."""
    try:
        command()
        distributed.destroy_process_group()
    except RungError as error:
        exit_with_error(_with_notes(str(error), error), 2)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        exit_with_error(_with_notes(f"{error.strerror or error}{where}", error), 1)
    except KeyboardInterrupt as error:
        exit_with_error(_with_notes("stopped", error), 130)
    except typer.Exit:
        raise
    except Exception as error:
        if _follows_interrupt(error):
            exit_with_error("stopped", 130)
        if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
            exit_with_error(
                "an argument or a name is not UTF-8, and cannot be used here: write it in UTF-8", 2
            )
        distributed.defer_to_main()
        raise


def _join_lines(text: str) -> str:
    """Make one line of each paragraph, which the terminal breaks where it ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _refuse_former(former: dict[str, str]) -> type[TyperCommand]:
    """A command that ends with exit code 2 where an option of `former` is given."""

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            options = args[: args.index("--")] if "--" in args else args
            for place, word in enumerate(options):
                option, _, value = word.partition("=")
                if option in former:
                    key = former[option]
                    value = value or (options[place + 1 :] or ["VALUE"])[0]
                    setting = key if "=" in key else f"{key}={value}"
                    exit_with_error(f"{option} is a setting now: write --set {setting}", 2)
            return super().parse_args(ctx, args)

    return Command


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


def _with_notes(message: str, error: BaseException) -> str:
    """The message with the notes of the error: what is kept, and how to go on."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def _with_quiet(function: Callable[..., None]) -> inspect.Signature:
    """The signature of a command with `--quiet`."""
    plain = inspect.signature(function)
    quiet = inspect.Parameter(
        "quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption
    )
    return plain.replace(parameters=[*plain.parameters.values(), quiet])


def _follows_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an error, as in an engine whose call was broken off."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def resumable(verb: str = "") -> Iterator[None]:
    """End the command after Ctrl-C with the line that goes on.

    That is `verb` with the run's folder, or without a verb the same command as now.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        from rung.api.interrupts import Interrupted
        from rung.runs import RECORD

        if not isinstance(error, Interrupted):
            raise
        if verb and not (error.folder / RECORD).exists():
            again = format_resume_command()
            exit_with_error(f"stopped before anything was saved. Begin again with: {again}", 130)
        words = (verb, "--out", error.folder, "--resume") if verb else ()
        again = format_resume_command(*words)
        exit_with_error(f"stopped; the work so far is saved. Go on with: {again}", 130)


def exit_with_error(message: str, code: int) -> None:
    """End the command with one line and an exit code; of several processes the main one prints.

    Ctrl-C (130) has reached all of them.
    """
    if code != 130:
        distributed.defer_to_main()
    if distributed.is_main() or code != 130:
        print(f"rung: {escape_controls(message)}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object on standard output, in ASCII where the encoding lacks a character."""
    from rung.files import to_json

    text = to_json(facts, indent=2)
    print(text if can_print(text, sys.stdout) else json.dumps(json.loads(text), indent=2))
