"""Climb, and write the table of the rungs and their accuracies on minimal pairs to a file.

    python tools/record_climb.py FILE toy-language
    python tools/record_climb.py FILE NOVELS --minutes 60 --pairs BLIMP

What stands behind the file's name is given to `rung climb` as it is. Without --out, the runs go to
the folder that `rung climb` chooses; a climb that is finished there is recorded as it is. Beside
FILE, whose name ends in .txt, the charts of the pairs are drawn as .svg. Variables that hold torch
to fewer instructions than the processor has are recorded with the command.
"""

import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from rung import runs
from rung.api.options import name_folder
from rung.cli.run_tables import climb_table
from rung.cli.tables import FittedTable
from rung.report.axes import CHART_WIDTHS
from rung.report.page import shade_runs
from rung.report.pairs import draw_pair_charts
from rung.report.summaries import group_runs, read_runs, read_summaries

WIDTH = 200  # characters, more than any table has
HOLDS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def record_climb(out: Path, arguments: Sequence[str]) -> None:
    """Run `rung climb`, and write what it found; of the table of rungs all but the samples."""
    subprocess.run([sys.executable, "-m", "rung", "climb", *arguments], check=True)
    options = dict(itertools.pairwise(arguments))
    folder = Path(options.get("--out") or name_folder(arguments[0]))
    records = {path.parent: runs.read_record(path.parent) for path in folder.glob("*/rung.json")}
    rows = read_summaries(records)
    folders = [folder / row.name for row in rows]
    ladder = climb_table(rows, folders)
    ladder.columns = [column for column in ladder.columns if column.header != "a sample"]
    ladder.captions.clear()
    first = records[folders[0]]
    machine = f"{first['hardware']}, Python {first['versions']['python']}"
    with out.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=WIDTH)
        held = [f"{name}={os.environ[name]}" for name in HOLDS if name in os.environ]
        command = shlex.join([*held, "rung", "climb", *map(_name, arguments)])
        console.print(f"$ {command}          # {machine}", highlight=False, markup=False)
        console.print(ladder)
        scored = [records[path] for path in folders if "pairs" in records[path]]
        if scored:
            console.print("", build_accuracies(scored), sep="\n")
    trimmed = [line.rstrip() for line in out.read_text(encoding="utf-8").splitlines()]
    out.write_text("\n".join(trimmed).rstrip() + "\n", encoding="utf-8")
    draw_accuracies(out, folders)


def _name(word: str) -> str:
    """Return a path without the folders above it, which are this machine's own."""
    return Path(word).name if Path(word).exists() else word


def draw_accuracies(out: Path, folders: Sequence[Path]) -> None:
    """Draw the report's charts of the pairs beside the file, each in an image of its own."""
    (group, *_) = group_runs(read_runs(folders))
    found = [run for run in group.runs if run.row.pairs]
    drawings = draw_pair_charts(found, shade_runs(group)) if found else []
    page = resources.files("rung.report").joinpath("page.html").read_text(encoding="utf-8")
    colours = page[page.index(":root {") : page.index("* { box-sizing")]
    rules = [line for line in page.splitlines() if line.startswith("svg ")]
    style = "\n".join([colours, *rules, "svg { font-family: sans-serif }"])
    for number, (wide, _) in enumerate(drawings):
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{CHART_WIDTHS[0]}" '
        paper = '<rect x="-16" y="-16" width="120%" height="120%" fill="var(--paper)"/>'
        image = wide.replace("<svg ", head, 1).replace(">", f"><style>{style}</style>{paper}", 1)
        path = out.with_name(f"{out.stem}{f'-{number + 1}' * (number > 0)}.svg")
        path.write_text(image + "\n", encoding="utf-8")


def build_accuracies(scored: Sequence[dict[str, Any]]) -> FittedTable:
    """Build a table with a line for each paradigm and a column for each run."""
    table = FittedTable("accuracy on minimal pairs, in percent")
    table.add_column("paradigm", no_wrap=True)
    table.add_figures("pairs", *(record["rung"] for record in scored))
    found = [record["pairs"] for record in scored]

    def add(name: str, rows: Sequence[dict[str, Any]]) -> None:
        accuracies = (f"{100 * row['accuracy']:.1f}" for row in rows)
        table.add_cells(name, f"{rows[0]['pairs']:,}", *accuracies)

    last = ""
    for rows in zip(*(each["paradigms"] for each in found), strict=True):
        phenomenon = rows[0]["phenomenon"]
        if phenomenon != last:
            names = [row["phenomenon"] for row in found[0]["phenomena"]]
            add(phenomenon, [each["phenomena"][names.index(phenomenon)] for each in found])
        last = phenomenon
        add(f"  {rows[0]['paradigm']}" if phenomenon else rows[0]["paradigm"], rows)
    table.add_section()
    add("all", found)
    return table


if __name__ == "__main__":
    record_climb(Path(sys.argv[1]), sys.argv[2:])
