"""The charts of accuracies on minimal pairs: small ones side by side, all on one scale.

A phenomenon is a small chart with a row for each run; one whose paradigms end in numbers, such as
`agreement at distance 3`, is a line for each run over the number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rung.report.axes import (
    LABEL_HEIGHT,
    LABEL_SIZE,
    WIDE,
    LinearScale,
    PlotArea,
    draw_line,
    draw_svg,
    draw_text,
    draw_whisker,
    place_labels,
    shorten,
    text_width,
)

CHANCE = 0.5
ROW = 19  # CSS pixels, the height of a run's row in a small chart
FIGURE_WIDTH = 40  # CSS pixels, of the figure at the end of a row
LINES_HEIGHT = 170  # CSS pixels, of the area in which lines are drawn
LOG_FROM = 20  # the number axis is logarithmic where its ends differ by such a factor


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """A run's accuracies in a small chart: (number or 0, accuracy, low, high) of each paradigm."""

    label: str
    shade: int
    points: list[tuple[int, float, float, float]]


@dataclass(frozen=True, kw_only=True)
class PairPanel:
    """A small chart of the runs that were scored on a phenomenon."""

    title: str
    runs: list[Accuracies]


def draw_rows(panels: Sequence[PairPanel], width: int) -> str:
    """Draw a small chart for each phenomenon, with a row for each run, several side by side."""
    labels = list(dict.fromkeys(run.label for panel in panels for run in panel.runs))
    across = min(len(panels), 4 if width >= WIDE else 2)
    names = max(text_width(shorten(label, 14), LABEL_SIZE) for label in labels) + 10
    each = min((width - names) / across, 260)
    height = 28 + ROW * len(labels) + 30
    parts = []
    for place, panel in enumerate(panels):
        left, top = names + each * (place % across), height * (place // across)
        area = PlotArea(
            width, left + 6, left + each - FIGURE_WIDTH - 6, top + 28, top + height - 30
        )
        if place % across == 0:
            parts += [
                draw_text(0, area.top + ROW * row + 13, shorten(label, 14), "name-small")
                for row, label in enumerate(labels)
            ]
        parts.append(_draw_row_panel(panel, labels, area))
    total = height * math.ceil(len(panels) / across)
    words = "; ".join(_describe(panel) for panel in panels)
    return draw_svg(width, total, f"Accuracy on minimal pairs: {words}", parts)


def draw_lines(panels: Sequence[PairPanel], width: int) -> str:
    """Draw accuracy over the number in the paradigms' names, a line for each run."""
    across = 2 if width >= WIDE and len(panels) > 1 else 1
    labels = [run.label for panel in panels for run in panel.runs]
    names = max(text_width(shorten(label, 14), LABEL_SIZE) for label in labels) + 24
    each = width / across
    height = LINES_HEIGHT + 84
    lowest = min(
        accuracy for panel in panels for run in panel.runs for _, accuracy, _, _ in run.points
    )
    parts = []
    for place, panel in enumerate(panels):
        left, top = each * (place % across), height * (place // across)
        gap = 24 if place % across else 0
        area = PlotArea(
            width, left + gap + 40, left + each - names, top + 30, top + 30 + LINES_HEIGHT
        )
        parts.append(_draw_line_panel(panel, area, 0.0 if lowest < 0.4 else 0.4))
    total = height * math.ceil(len(panels) / across)
    words = "; ".join(_describe(panel) for panel in panels)
    return draw_svg(width, total, f"Accuracy on minimal pairs by distance or depth: {words}", parts)


def _draw_row_panel(panel: PairPanel, labels: Sequence[str], area: PlotArea) -> str:
    scale = LinearScale(0, 1, area.left, area.right)
    room = int((area.right + FIGURE_WIDTH - area.left) / (0.67 * LABEL_SIZE))  # bold
    parts = [draw_text(area.left, area.top - 8, shorten(panel.title, room), "figure")]
    for tick in (0, CHANCE, 1):
        kind = "mark" if tick == CHANCE else "row"
        parts.append(draw_line(scale(tick), area.top, scale(tick), area.bottom, kind))
        parts.append(draw_text(scale(tick), area.bottom + 16, f"{tick:.0%}", "tick middle"))
    for run in panel.runs:
        y = area.top + ROW * labels.index(run.label) + 9
        ((_, accuracy, low, high),) = run.points
        says = f"{run.label}: {_percent(accuracy, low, high)} of {panel.title}"
        parts.append(
            f'<g class="shade-{run.shade}"><title>{escape(says)}</title>'
            f"{draw_whisker(scale(low), scale(high), y)}"
            f'<circle cx="{scale(accuracy):.1f}" cy="{y:.1f}" r="4"/></g>'
        )
        parts.append(
            draw_text(area.right + FIGURE_WIDTH, y + 4, f"{100 * accuracy:.0f}%", "tick end")
        )
    return "".join(parts)


def _draw_line_panel(panel: PairPanel, area: PlotArea, low: float) -> str:
    numbers = sorted({number for run in panel.runs for number, *_ in run.points})
    bend = math.log if numbers[0] > 0 and numbers[-1] / numbers[0] >= LOG_FROM else float
    x_scale = LinearScale(bend(numbers[0]), bend(numbers[-1]), area.left + 8, area.right - 8)
    y_scale = LinearScale(low, 1, area.bottom, area.top)
    parts = [draw_text(area.left - 40, area.top - 12, panel.title, "figure")]
    for tick in (0, 0.25, CHANCE, 0.75, 1):
        if tick >= low:
            y, kind = y_scale(tick), "mark" if tick == CHANCE else "row"
            parts.append(draw_line(area.left, y, area.right, y, kind))
            parts.append(draw_text(area.left - 6, y + 4, f"{tick:.0%}", "tick end"))
    parts.append(draw_line(area.left, area.bottom, area.right, area.bottom, "axis"))
    free = area.width + 0.0
    for number in reversed(numbers):  # the last one always has its label
        x, half = x_scale(bend(number)), text_width(str(number), LABEL_SIZE) / 2
        parts.append(draw_line(x, area.bottom, x, area.bottom + 4, "axis"))
        if x + half <= free:
            parts.append(draw_text(x, area.bottom + 18, str(number), "tick middle"))
            free = x - half - 4
    for run in panel.runs:
        pixels = [(x_scale(bend(number)), y_scale(each), each) for number, each, *_ in run.points]
        parts.append(_draw_run_line(run, pixels))
    ends = [y_scale(run.points[-1][1]) for run in panel.runs]
    places = place_labels(ends, LABEL_HEIGHT - 3, area.top, area.bottom)
    for run, end, place in zip(panel.runs, ends, places, strict=True):
        start = area.right + 2
        parts.append(
            f'<path d="M{area.right - 5:.1f} {end:.1f}H{start:.1f}L{start + 8:.1f} {place:.1f}" '
            'class="leader"/>'
        )
        parts.append(draw_text(start + 11, place + 4, shorten(run.label, 14), "label"))
    return "".join(parts)


def _draw_run_line(run: Accuracies, pixels: Sequence[tuple[float, float, float]]) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in pixels)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>'
        f"{escape(run.label)}, {number}: {_percent(*figures)}</title></circle>"
        for (x, y, _), (number, *figures) in zip(pixels, run.points, strict=True)
    )
    return f'<g class="shade-{run.shade}"><path d="M{path}" class="curve"/>{dots}</g>'


def _percent(accuracy: float, low: float, high: float) -> str:
    return f"{accuracy:.1%} ({100 * low:.1f}–{100 * high:.1f})"


def _describe(panel: PairPanel) -> str:
    """Describe a small chart in words, each line by its ends."""
    parts = []
    for run in panel.runs:
        figures = [f"{100 * accuracy:.0f}%" for _, accuracy, _, _ in run.points]
        parts.append(f"{run.label} {' to '.join(dict.fromkeys((figures[0], figures[-1])))}")
    return f"{panel.title}: {', '.join(parts)}"
