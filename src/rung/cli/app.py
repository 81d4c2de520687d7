"""What every verb shares: the app, the options that several take, and mistakes told in one line."""

import functools
import inspect
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rung import distributed
from rung.cli.output import can_print, escape_controls, replace_word, say, set_quiet, write_resuming
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
Column = Annotated[
    str, typer.Option(help="The text column of tables; text, content, document or page by default.")
]
Documents = Annotated[
    str, typer.Option(help="What a document is in plain text: lines, paragraphs or file.")
]
Encoding = Annotated[
    str, typer.Option(help="The encoding of files that are not UTF-8 and have no byte-order mark.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else.")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors and the result, no progress and no hints."),
]
Run = Annotated[str, typer.Argument(help="A run folder, a Hugging Face model folder, or a Hub id.")]
Seed = Annotated[int, typer.Option(help="Where randomness starts.")]
TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="A kind (see `rung tokenizers`) or a folder.")
]


def verb(
    example: str, *, spreads: bool = False, former: dict[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command; a user's mistake becomes one clear line and exit code 2, Ctrl-C exit code
    130.

    Every command takes `--quiet`. Under `torchrun` all processes do what `spreads`; the rest is
    done by the main one alone. `former` has options that are settings now, and the setting's key:
    to give one is a mistake, and the line says the new way.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, quiet: bool = False, **kwargs: Any) -> None:
            set_quiet(quiet)
            if not (spreads or distributed.is_main()):
                return
            try:
                function(*args, **kwargs)
                distributed.destroy_process_group()
            except RungError as error:
                fail(_with_notes(str(error), error), 2)
            except OSError as error:
                where = f": {error.filename}" if error.filename else ""
                fail(_with_notes(f"{error.strerror or error}{where}", error), 1)
            except KeyboardInterrupt as error:
                fail(_with_notes("stopped", error), 130)
            except typer.Exit:
                raise
            except Exception as error:
                if _follows_interrupt(error):
                    fail("stopped", 130)
                if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
                    fail(
                        "an argument or a name is not UTF-8, and cannot be used here: write it in "
                        "UTF-8",
                        2,
                    )
                distributed.defer_to_main()
                raise

        guarded.__signature__ = _with_quiet(function)  # type: ignore[attr-defined]
        name = function.__name__.rstrip("_").replace("_", "-")
        command = _refuse_former(former) if former else None
        return app.command(name, cls=command, epilog=f"Example: {example}")(guarded)

    return register


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
                    fail(f"{option} is a setting now: write --set {setting}", 2)
            return super().parse_args(ctx, args)

    return Command


def read_typed(name: str, text: str) -> str:
    """Text that was typed, as an argument or a line, which is UTF-8 whatever the locale says. File
    names stay as typed.

    Bytes that the locale's encoding does not have come from Python as lone surrogates. Raises
    `RecipeError` where they are not UTF-8.
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


def name_corpus(given: list[str] | None, beside: Path, *, spreads: bool = True) -> str | list[str]:
    """The corpus as it was named, standard input (-) kept in a file in the folder `beside`; ""
    where none was.

    With `spreads` all processes call it, and the main one reads.
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
            say("Type the text; Ctrl-D ends it.")
        keep = distributed.on_main(save_stdin) if spreads else save_stdin
        path = str(keep(sys.stdin.buffer, beside))
        if spreads:
            say(f"Standard input is kept in {path}")
        replace_word("-", path)
        names = [path if name == "-" else name for name in names]
    return names[0] if len(names) == 1 else names or ""


def _with_notes(message: str, error: BaseException) -> str:
    """The message with what was added to the error on its way: what is kept, and how to go on."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def _with_quiet(function: Callable[..., None]) -> inspect.Signature:
    """The command's parameters and `--quiet`."""
    plain = inspect.signature(function)
    quiet = inspect.Parameter(
        "quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet
    )
    return plain.replace(parameters=[*plain.parameters.values(), quiet])


def _follows_interrupt(error: BaseException | None) -> bool:
    """Whether it was raised because of Ctrl-C, as by an engine whose call was broken off."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _note_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for an unexpected error after Ctrl-C: Spark swallows the one, and
    raises its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    except (RungError, OSError):
        raise
    except Exception as error:
        with suppress(BlockingIOError):  # nothing was noted
            if signal.SIGINT in os.read(reading, 4096):
                raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


@contextmanager
def resumable(verb: str = "", folder: Path | None = None) -> Iterator[None]:
    """After Ctrl-C, print the line that goes on: with the run in `folder`, or by the same command
    as now.
    """
    try:
        with _note_interrupts():
            yield
    except KeyboardInterrupt:
        from rung.runs import RECORD

        if folder and not (folder / RECORD).exists():
            fail(f"stopped before anything was saved. Begin again with: {write_resuming()}", 130)
        go_on = write_resuming(verb, "--out", folder, "--resume") if folder else write_resuming()
        fail(f"stopped; the work so far is saved. Go on with: {go_on}", 130)


def fail(message: str, code: int) -> None:
    """End the command with one line and an exit code; of several processes the main one says it."""
    if code != 130:  # Ctrl-C reached them all
        distributed.defer_to_main()
    if distributed.is_main() or code != 130:
        print(f"rung: {escape_controls(message)}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def check_given(what: str, options: dict[str, Any]) -> None:
    """Raise `RecipeError`, after `what`, where one of the options was given."""
    given = [name for name, value in options.items() if value not in (None, "", [])]
    if given:
        raise RecipeError(f"{what} {', '.join(given)}: leave it out")


def print_json(facts: dict[str, Any]) -> None:
    """One JSON object on standard output, in ASCII where its encoding has not all of it."""
    from rung.files import to_json

    text = to_json(facts, indent=2)
    print(text if can_print(text, sys.stdout) else json.dumps(json.loads(text), indent=2))
