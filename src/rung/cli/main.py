"""The command `rung`: each verb parses, calls one library function, and prints.

Nothing heavy is imported before a verb runs: `rung --help` must answer at once.
"""

from typing import Annotated

import typer

from rung import __version__
from rung.cli import evaluate, export, serve, train, tune, verify  # noqa: F401  # each registers verbs
from rung.cli.app import app
from rung.cli.output import use_any_encoding
from rung.device import configure_threads

__all__ = ["app", "main"]


def main() -> None:
    """The entry point."""
    configure_threads()  # before torch is imported
    use_any_encoding()
    app()


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        print(f"rung {__version__}")
        raise typer.Exit
