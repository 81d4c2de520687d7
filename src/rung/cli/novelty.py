"""The verb that measures how much of what a run writes is new: novelty."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from rung.cli.app import print_json, verb
from rung.cli.options import (
    JsonOption,
    LoadArgument,
    RunArgument,
    SeedOption,
)
from rung.cli.output import (
    escape_controls,
    print_next_command,
    print_note,
    silence_libraries,
    suggest_prompt,
)
from rung.errors import RecipeError

SPAN_TEXT_WIDTH = 100  # characters of a span's text, on a terminal that is wide enough
# The n whose columns are left out first where there is little room.
GIVES_WAY = ("30", "20", "15", "9", "8", "6", "7", "repeats", "5", "4", "1", "2")


@verb("novelty", "rung novelty runs/python-docs/llama3")
def novelty_command(
    run: RunArgument,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEMPERATURE,TOP_P",
            help="A setting to try. May be given again; ten of them by default.",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="So many texts at each setting.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="So many tokens of each.")] = 200,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """How much of what a run writes is new, beside text that people wrote.

    The run continues documents of the test split. The figures are kept in its record, for `rung
    report`.
    """
    silence_libraries()
    from rung.api.novelty import novelty
    from rung.api.run import load
    from rung.cli.progress import Display

    settings = [_parse_setting(each) for each in sampling or []]
    opened = load(run, **load_options)
    with Display() as display:
        found = novelty(
            opened,
            settings=settings,
            on_progress=display.show,
            texts=texts,
            tokens=tokens,
            seed=seed,
        )
    if as_json:
        print_json(found)
        return
    _show(found)
    nearest = found["settings"][found["nearest"]]
    setting = ("--temperature", f"{nearest['temperature']:g}", "--top-p", f"{nearest['top_p']:g}")
    print_note("")
    print_next_command("generate", run, *suggest_prompt(opened.record), options=setting)


def _parse_setting(typed: str) -> tuple[float, float]:
    """The temperature and the top-p of a setting. Raises `RecipeError` for what is not that."""
    try:
        temperature, top_p = map(float, typed.split(","))
    except ValueError as error:
        raise RecipeError(
            f"--sampling is {typed!r}: write a temperature and a top-p, as in --sampling 0.8,0.95"
        ) from error
    return temperature, top_p


def _show(found: Mapping[str, Any]) -> None:
    from rung.cli.tables import FittedTable, show
    from rung.report.novelty import describe_nearest, format_share

    lengths = list(found["human"]["new"])
    table = FittedTable(
        f"{found['run']}: new n-grams of {found['unit']}, by n, that {found['corpus']} does not "
        "have in training",
        GIVES_WAY,
    )
    table.add_figures("temperature", "top-p", *lengths, "repeats", "longest copy")
    table.add_column("beside human", no_wrap=True)
    rows: list[Mapping[str, Any]] = [found["human"], *found["settings"]]
    for row in rows:
        is_human = row is found["human"]
        names = ("human", "") if is_human else (f"{row['temperature']:g}", f"{row['top_p']:g}")
        shares = [format_share(row["new"][n]) for n in lengths]
        last = (format_share(row["repeated"]), f"{row['longest']:,}", row.get("verdict", ""))
        table.add_cells(*names, *shares, *last)
    table.caption = Text(escape_controls("\n".join(describe_nearest(found))))
    show(table)
    spans = FittedTable("The longest copies")
    spans.add_figures("temperature", "top-p", found["unit"])
    spans.add_column("text", max_width=SPAN_TEXT_WIDTH, no_wrap=True)
    nearest = found["settings"][found["nearest"]]
    for name, top_p, row in (
        ("human", "", found["human"]),
        (f"{nearest['temperature']:g}", f"{nearest['top_p']:g}", nearest),
    ):
        spans.add_cells(name, top_p, f"{row['longest']:,}", row["longest_text"])
    show(spans)
