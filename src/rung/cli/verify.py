"""The verb that verifies that a killed run loses nothing: verify-resume."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from rung.cli.app import print_json, verb
from rung.cli.options import JsonOption, SeedOption
from rung.cli.output import silence_libraries


@verb("verify-resume", "rung verify-resume recipes/gpt2.yaml --kills 10 --steps 60")
def verify_resume_command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|RECIPE", help="A run folder, or a recipe (recipes/*.yaml)."),
    ],
    kills: Annotated[int, typer.Option(min=1, help="How often to kill it.")] = 5,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Train so many steps; as the recipe says by default, or 60."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Kill a training run at random moments, resume it each time, and compare it with one left
    alone.

    Exit code 1 where losses, samples, weights or scores are not the same to the last bit.
    """
    from rung.cli.progress import Display
    from rung.cli.run_tables import resume_table
    from rung.cli.tables import show

    silence_libraries()
    from rung.workflows.verify_resume import read_source
    from rung.workflows.verify_resume import verify_resume as verify

    recipe = read_source(run, steps)
    folder = Path(tempfile.mkdtemp(prefix="rung-verify-resume-"))
    kept = False
    try:
        with Display() as display:
            verdict = verify(recipe, kills, folder, display.show, seed)
        kept = not verdict.is_equal
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    print_json(verdict.as_dict()) if as_json else show(resume_table(verdict))
    if kept:
        print(f"rung: not the same; both runs are kept in {folder}", file=sys.stderr)
        raise typer.Exit(1)
