"""Runs and ladders in a notebook: the report's table and its curve, as HTML."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from rung import runs
from rung.ladder import is_counting
from rung.report import charts
from rung.report.summaries import group_runs, read_runs
from rung.report.swaps import build_swaps_table, read_swaps
from rung.report.table import build_table

# A notebook's page has a style of its own: these rules hold inside `.rung` only.
STYLE = """<style>
.rung { font-variant-numeric: tabular-nums }
.rung h2, .rung .caption { display: none }
.rung table { border-collapse: collapse; font-size: .875rem; margin: 0 }
.rung th, .rung td { padding: 6px 0 6px 18px; text-align: right; white-space: nowrap }
.rung th, .rung td { font-weight: 400; border: 0; background: none }
.rung th:first-child, .rung td:nth-child(2) { text-align: left }
.rung th:first-child { padding-left: 0 }
.rung thead th { border-bottom: 1px solid; vertical-align: bottom }
.rung .best, .rung .best th, .rung .best td { font-weight: 650 }
.rung tfoot tr:first-child > * { border-top: 1px solid }
.rung .notes { font-size: .8125rem; opacity: .8; margin: 8px 0 0; padding-left: 18px }
.rung svg { display: block; width: 100%; max-width: 880px; height: auto; overflow: visible }
.rung svg text { fill: currentColor; font-size: 12px; font-family: inherit }
.rung svg .middle { text-anchor: middle } .rung svg .end { text-anchor: end }
.rung svg .axis, .rung svg .row { stroke: currentColor; opacity: .25 }
.rung svg .curve { stroke: #4272aa; stroke-width: 2.25; fill: none; stroke-linejoin: round }
.rung svg .level { stroke: currentColor; opacity: .5; stroke-dasharray: 5 4 }
.rung svg .leader { stroke: currentColor; opacity: .4; fill: none; stroke-width: .75 }
.rung svg circle { fill: #4272aa }
</style>"""


def show_run(folder: Path) -> str:
    """A run's row of the report's table, and its curve where it was trained by gradients."""
    if not (folder / runs.RECORD).exists():
        return f"<code>{escape(str(folder))}</code>"
    found = read_runs([folder])
    body = "".join(map(build_table, group_runs(found)))
    for run in found:
        if run.curve and not is_counting(run.row.rung):
            curve = charts.Curve(
                label=run.label,
                points=run.curve,
                level=run.curve[-1][1],
                shade=charts.SHADE_STEPS - 1,
            )
            body += charts.draw_curves([curve], charts.WIDE)
    return _wrap(body)


def show_ladder(folders: Iterable[Path]) -> str:
    """The report's table of these runs."""
    return _wrap("".join(map(build_table, group_runs(read_runs(folders)))))


def show_swaps(folders: Iterable[Path]) -> str:
    """The report's table of what each swap brings."""
    found = list(folders)
    rows = read_swaps(found)
    finished = (record for record in map(runs.read_record_or_failure, found) if "scores" in record)
    return _wrap(build_swaps_table(rows, next(finished)["training"]) if rows else "")


def show_rows(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], notes: str) -> str:
    """A table of cells below its title, the first of each row being its name, with a note."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return _wrap(
        f"<p>{escape(title)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<p class="notes">{escape(notes)}</p>'
    )


def _wrap(body: str) -> str:
    return f'{STYLE}<div class="rung">{body}</div>'
