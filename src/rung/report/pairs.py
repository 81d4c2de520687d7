"""The report's part on minimal pairs: small charts by phenomenon, and a table by paradigm."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rung.evaluation.metrics import NO_FIGURE, format_accuracy
from rung.report.axes import CHART_WIDTHS
from rung.report.pair_charts import Accuracies, PairPanel, draw_lines, draw_rows
from rung.report.summaries import ReportedRun
from rung.report.table import make_cell

# A paradigm that ends in a number, such as `recall at distance 100`.
NUMBERED = re.compile(r"(.*\s)(\d+)")


def draw_pair_charts(found: Sequence[ReportedRun], shades: Mapping[str, int]) -> list[list[str]]:
    """Draw the accuracies of the runs, each figure for a screen and for a phone."""
    over_numbers, by_rows = [], []
    for phenomenon, paradigms in _list_phenomena(found):
        if series := _find_series(paradigms):
            over_numbers += [
                _make_panel(stem, phenomenon, names, found, shades)
                for stem, names in series.items()
            ]
        elif phenomenon:
            by_rows.append(_make_panel(phenomenon, phenomenon, [None], found, shades))
        else:  # without phenomena each paradigm stands for itself
            by_rows += [_make_panel(name, "", [name], found, shades) for name in paradigms]
    return [
        [draw(panels, width) for width in CHART_WIDTHS]
        for draw, panels in ((draw_lines, over_numbers), (draw_rows, by_rows))
        if panels
    ]


def build_pairs_table(found: Sequence[ReportedRun]) -> str:
    """Build a table of the accuracies by paradigm, with a column for each run."""
    heads = "".join(f'<th scope="col">{escape(run.label)}</th>' for run in found)
    rows = []
    for phenomenon, paradigms in _list_phenomena(found):
        for name in paradigms:
            cells = "".join(
                make_cell("figure", escape(run.label), _show(_find(run, phenomenon, name)))
                for run in found
            )
            rows.append(
                f'<tr><th scope="row">{escape(name)}</th><td>{escape(phenomenon)}</td>{cells}</tr>'
            )
    return (
        "<details><summary>Accuracy by paradigm</summary>"
        '<div class="scroll" role="region" aria-label="Accuracy by paradigm" tabindex="0"><table>'
        f'<thead><tr><th scope="col">paradigm</th><th scope="col">phenomenon</th>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _list_phenomena(found: Sequence[ReportedRun]) -> list[tuple[str, list[str]]]:
    """List each phenomenon with its paradigms, in the order of the record."""
    groups: dict[str, list[str]] = {}
    for row in (found[0].row.pairs or {}).get("paradigms", ()):
        groups.setdefault(row["phenomenon"], []).append(row["paradigm"])
    return list(groups.items())


def _find_series(paradigms: Sequence[str]) -> dict[str, list[str]]:
    """Return the paradigms by what stands before their number.

    Nothing is returned unless all end in a number, and each series has several.
    """
    series: dict[str, list[str]] = {}
    for name in paradigms:
        match = NUMBERED.fullmatch(name)
        series.setdefault(match[1].strip() if match else "", []).append(name)
    return {} if "" in series or min(map(len, series.values())) < 2 else series


def _make_panel(
    title: str,
    phenomenon: str,
    paradigms: Sequence[str | None],
    found: Sequence[ReportedRun],
    shades: Mapping[str, int],
) -> PairPanel:
    """Make the small chart of some paradigms; None stands for the phenomenon as a whole."""
    runs = []
    for run in found:
        rows = [_find(run, phenomenon, name) for name in paradigms]
        points = [
            (_number(row.get("paradigm", "")), row["accuracy"], row["low"], row["high"])
            for row in rows
            if row
        ]
        if points:
            runs.append(Accuracies(label=run.label, shade=shades[run.label], points=points))
    return PairPanel(title=title, runs=runs)


def _find(run: ReportedRun, phenomenon: str, paradigm: str | None) -> dict[str, Any] | None:
    """Return a run's accuracies on a paradigm, or on all of a phenomenon."""
    pairs = run.row.pairs or {}
    for row in pairs.get("phenomena" if paradigm is None else "paradigms", ()):
        if row["phenomenon"] == phenomenon and row.get("paradigm") == paradigm:
            return dict(row)
    return None


def _number(paradigm: str) -> int:
    match = NUMBERED.fullmatch(paradigm)
    return int(match[2]) if match else 0


def _show(row: Mapping[str, Any] | None) -> str:
    return format_accuracy(row) if row else NO_FIGURE
