"""What every verb shares: the app, the options that several take, and mistakes told in one line."""

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from rung import ranks
from rung.errors import RungError

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

CorpusArgument = Annotated[str, typer.Argument(help="A name (see `rung corpora`), a path, a glob, or hf:ORG/NAME.")]
Documents = Annotated[str, typer.Option(help="What a document is in plain text: lines, paragraphs or file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else.")]
Run = Annotated[str, typer.Argument(help="A run folder, a Hugging Face model folder, or a Hub id.")]
Seed = Annotated[int, typer.Option(help="Where randomness starts.")]
TokenizerOption = Annotated[str, typer.Option("--tokenizer", help="A kind (see `rung tokenizers`) or a folder.")]


def verb(example: str, *, spreads: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command; a user's mistake becomes one clear line and exit code 2, Ctrl-C exit code 130.

    Under `torchrun` all processes do what `spreads`; the rest is done by the main one alone.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            if not (spreads or ranks.is_main()):
                return
            try:
                function(*args, **kwargs)
                ranks.leave()
            except RungError as error:
                fail(_with_notes(str(error), error), 2)
            except OSError as error:
                where = f": {error.filename}" if error.filename else ""
                fail(_with_notes(f"{error.strerror or error}{where}", error), 1)
            except KeyboardInterrupt as error:
                fail(_with_notes("stopped", error), 130)
            except typer.Exit:
                raise
            except Exception:
                ranks.give_way()
                raise

        name = function.__name__.rstrip("_").replace("_", "-")
        return app.command(name, epilog=f"Example: {example}")(guarded)

    return register


def _with_notes(message: str, error: BaseException) -> str:
    """The message with what was added to the error on its way: what is kept, and how to go on."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def fail(message: str, code: int) -> None:
    """End the command with one line and an exit code; of several processes the main one says it."""
    if code != 130:  # Ctrl-C reached them all
        ranks.give_way()
    if ranks.is_main() or code != 130:
        print(f"rung: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(code)


def print_json(facts: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    from rung.runs import to_json

    print(to_json(facts, indent=2))
