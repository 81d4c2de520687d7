"""Climb, and write the table of the rungs and their accuracies on minimal pairs to a file.

    python tools/record_climb.py FILE toy-language

What stands behind the file's name is given to `rung climb` as it is. Without --out, the runs go to
the folder that `rung climb` chooses; a climb that is finished there is recorded as it is.
"""

import itertools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rung import runs
from rung.api.options import name_folder
from rung.cli.run_tables import climb_table
from rung.cli.tables import FittedTable
from rung.report.summaries import read_summaries

WIDTH = 200  # characters, more than any table has


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
        command = shlex.join(["rung", "climb", *arguments])
        console.print(f"$ {command}          # {machine}", highlight=False, markup=False)
        console.print(ladder)
        scored = [records[path] for path in folders if "pairs" in records[path]]
        if scored:
            console.print("", build_accuracies(scored), sep="\n")
    trimmed = [line.rstrip() for line in out.read_text(encoding="utf-8").splitlines()]
    out.write_text("\n".join(trimmed).rstrip() + "\n", encoding="utf-8")


def build_accuracies(scored: Sequence[dict[str, Any]]) -> FittedTable:
    """Build a table with a line for each paradigm and a column for each run."""
    table = FittedTable("accuracy on minimal pairs, in percent")
    table.add_column("paradigm", no_wrap=True)
    table.add_figures("pairs", *(record["rung"] for record in scored))
    for place, row in enumerate(scored[0]["pairs"]["paradigms"]):
        found = [record["pairs"]["paradigms"][place]["accuracy"] for record in scored]
        name = row["paradigm"]
        table.add_cells(name, f"{row['pairs']:,}", *(f"{100 * each:.1f}" for each in found))
    table.add_section()
    total = [record["pairs"] for record in scored]
    table.add_cells(
        "all", f"{total[0]['pairs']:,}", *(f"{100 * each['accuracy']:.1f}" for each in total)
    )
    return table


if __name__ == "__main__":
    record_climb(Path(sys.argv[1]), sys.argv[2:])
