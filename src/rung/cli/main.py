"""The command `rung`: each verb parses, calls one library function, and prints.

Nothing heavy is imported before a verb runs: `rung --help` must answer at once.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rung import __version__
from rung.cli import (  # noqa: F401  # each registers verbs
    chat,
    compare,
    compress,
    corpora,
    evaluate,
    export,
    generate,
    novelty,
    serve,
    surprisal,
    train,
    tune,
    verify,
)
from rung.cli.app import app, run_app
from rung.cli.output import escape_unencodable
from rung.device import configure_threads

__all__ = ["app", "main"]

# The order of `rung --help`: make runs, measure them, use them, look around.
VERBS = [
    *("climb", "train", "tune", "eval", "compare", "score", "surprisal", "novelty"),
    *("generate", "chat", "serve", "export", "compress", "decompress"),
    *("report", "runs", "sizes", "corpora", "tokenizers", "verify-resume"),
]


class VerbGroup(TyperGroup):
    """The verbs in the order of `VERBS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of the verbs."""
        return sorted(super().list_commands(ctx), key=VERBS.index)


def main() -> None:
    """The entry point."""
    configure_threads()  # before torch is imported
    escape_unencodable()
    run_app()


@app.callback(cls=VerbGroup, invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        print(f"rung {__version__}")
        raise typer.Exit
