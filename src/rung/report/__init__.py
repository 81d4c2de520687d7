"""The report: one page, offline and self-contained, made from run folders and nothing else.

rows.py     run folders, read and grouped by the text they were scored on
charts.py   the figures, as inline SVG
page.py     the sections, as HTML
page.html   the page around them: its style sheet, no script
"""

from collections.abc import Iterable
from pathlib import Path

from rung import runs
from rung.errors import RunError
from rung.report.page import build_page
from rung.report.rows import Row, group_runs, read_runs

__all__ = ["Row", "read_rows", "write_report"]


def read_rows(folders: Iterable[Path]) -> list[Row]:
    """The runs as the table shows them, in the order of the ladder.

    Raises `RunError` for a folder that is no run, or a damaged one.
    """
    return [run.row for run in read_runs(folders)]


def write_report(folders: Iterable[Path], out: Path) -> None:
    """Write the page about these runs to `out`; figures over different text get sections of their own.

    Raises `RunError` for no runs, for a folder that is no run, or for a place that cannot be written to.
    """
    found = read_runs(folders)
    if not found:
        raise RunError("no runs to report on: name at least one run folder (`rung runs` lists them)")
    runs.make_folder(out.parent)
    runs.write_atomically(out, build_page(group_runs(found)))
