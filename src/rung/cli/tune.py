"""The verb that makes chat models: tune."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung import distributed
from rung.cli.app import verb
from rung.cli.options import parse_settings
from rung.cli.output import print_next_command, print_note, silence_libraries

if TYPE_CHECKING:
    from rung.api.run import Run


@verb(
    "tune",
    "rung tune runs/python-docs/llama3 chats.jsonl --minutes 10",
    on_all_ranks=True,
    resumes=True,
)
def tune_command(
    run: Annotated[
        str, typer.Argument(help="A run folder, a Hugging Face model folder, or a Hub id.")
    ] = "",
    data: Annotated[
        str | None,
        typer.Argument(
            help="JSON lines: messages, Alpaca, prompt and completion; hf:ORG/NAME; python-qa by "
            "default.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Train so many steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="From beginning to end; 5 by default.")
    ] = None,
    preference: Annotated[
        str,
        typer.Option(
            help="JSON lines of prompt, chosen, rejected: teach a tuned run which answer is "
            "better. It goes once "
            "through them, into RUN-preferred, and takes no DATA, --steps, --minutes or --set."
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The new run's folder; by default RUN-chat, with --preference RUN-preferred."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A field of TrainingArguments: key=value.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Where randomness starts; 0 by default.")] = None,
) -> None:
    """Make a chat model of a run, and say what that changed."""
    began = time.perf_counter()  # of the minutes
    silence_libraries()
    from rung.api.tune import tune
    from rung.cli.progress import Display

    length = {"steps": steps, "minutes": minutes, "seed": seed}
    settings: dict[str, Any] = {"preference": preference, "set": parse_settings(set_), **length}
    with Display() as display:
        tuned = tune(
            run,
            data,
            out=out,
            resume=resume,
            on_progress=display.show,
            began=began,
            **settings,
        )
    if distributed.is_main():
        _print_tuned(tuned)


def _print_tuned(run: "Run") -> None:
    """Print what tuning changed, with the best and the worst answers."""
    from rung.cli.run_tables import tuning_table
    from rung.cli.tables import show

    record = run.record
    show(tuning_table(record))
    for title in ("best", "worst"):
        for answer in record["tune"].get(title, []):
            given = answer["given"].strip() or "(nothing)"
            print_note(f"\n{title:<6} {answer['question']}\n       {given}")
            print_note(f"       expected: {answer['expected']}")
    print_note("")
    print_next_command("chat", run.folder)
