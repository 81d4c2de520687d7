"""The report's charts as inline SVG, coloured by the classes of the page's style sheet.

Every chart is drawn twice, for a screen and for a phone; the style sheet shows the one that fits.
"""

import math
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
    format_ticks,
    format_tokens,
    place_labels,
    round_ticks,
    shorten,
    stack_flags,
    text_width,
)

SHADE_STEPS = 6  # steps from the lowest rung to the highest, in the style sheet
ROW, NARROW_ROW = 42, 46  # the height of a rung's row, on a screen and on a phone
NARROW_WORDS = 6, 26  # where the words of a phone's row begin and end


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of the ladder: a rung's bits per byte, with its interval where there is one."""

    label: str
    note: str
    value: float
    low: float | None
    high: float | None
    shade: int


@dataclass(frozen=True, kw_only=True)
class DifferenceRow:
    """A row of differences: a dot for each seed, their mean, and its interval from two seeds on."""

    label: str
    note: str
    points: list[float]
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line through (x, y) points, labelled at its end; without points, dashed at `level`."""

    label: str
    points: list[tuple[float, float]]
    level: float | None
    shade: int

    @property
    def end(self) -> float:
        """Return the height at which the line ends."""
        return self.points[-1][1] if self.points else self.level or 0.0


def draw_ladder(bars: list[Bar], marks: dict[str, float], width: int) -> str:
    """Draw a row for each rung, a dot at its bits per byte, and the marks as vertical lines."""
    wide = width >= WIDE
    row_height = ROW if wide else NARROW_ROW
    names = max(
        max(text_width(shorten(b.label, 22), 14), text_width(b.note, LABEL_SIZE)) for b in bars
    )
    left, right = (names + 20, width - 136.0) if wide else (10.0, width - 10.0)
    flags = [
        (f"{name} {value:.2f}", value) for name, value in marks.items() if math.isfinite(value)
    ]
    widths = [text_width(text, LABEL_SIZE) + 12 for text, _ in flags]
    room = width - 2 - left  # a flag may fly over the column of values
    scale = _ladder_scale(bars, [v for _, v in flags], widths, (left, right, room))
    levels = stack_flags([(scale(v), w) for (_, v), w in zip(flags, widths, strict=True)])
    top = 14 + LABEL_HEIGHT * (max(levels) + 1) if flags else 8
    area = PlotArea(width, left, right, top, top + row_height * len(bars))
    parts = [_vertical_axis_lines(scale, area), _flags(flags, levels, scale, area)]
    best = min(bar.value for bar in bars)
    for i, bar in enumerate(bars):
        parts.append(_bar(bar, scale, area, top + row_height * i, bar.value == best))
    parts.append(
        draw_text(
            (left + right) / 2,
            area.bottom + 40,
            "bits per byte (← lower is better)",
            "axis-name middle",
        )
    )
    return draw_svg(
        width, area.bottom + 50, "Bits per byte of each rung: " + _in_words(bars, marks), parts
    )


def draw_differences(rows: list[DifferenceRow], base: str, width: int) -> str:
    """Draw a row for each difference in bits per byte, a dot with whiskers; `base` is a line."""
    wide = width >= WIDE
    row_height = ROW if wide else NARROW_ROW
    names = max(text_width(row.note, LABEL_SIZE) for row in rows)
    left, right = (names + 20, width - 150.0) if wide else (10.0, width - 10.0)
    values = [0.0, *(v for row in rows for v in (row.low, row.high, *row.points) if v is not None)]
    low, high = min(values), max(values)
    air = max((high - low) * 0.06, 0.002)
    scale = LinearScale(low - air, high + air, left, right)
    area = PlotArea(width, left, right, 22.0, 22.0 + row_height * len(rows))
    zero = scale(0)
    parts = [_vertical_axis_lines(scale, area)]
    parts += [
        draw_line(zero, start, zero, end, "axis")
        for start, end in _clear_of_words(area.top - 4, area)
    ]
    parts.append(draw_text(zero, area.top - 10, base, "tick middle"))
    parts += [
        _difference(row, scale, area, area.top + row_height * i) for i, row in enumerate(rows)
    ]
    name = f"bits per byte more than {base} (← lower is better)"
    parts.append(draw_text((left + right) / 2, area.bottom + 40, name, "axis-name middle"))
    words = ", ".join(f"{row.label} {signed(row.value)}" for row in rows)
    return draw_svg(
        width, area.bottom + 50, f"DifferenceRow from {base} in bits per byte: {words}", parts
    )


def draw_curves(curves: list[Curve], width: int) -> str:
    """Draw bits per byte against training tokens, each line labelled at its end."""
    wide = width >= WIDE
    labels = [(shorten(c.label, 24 if wide else 14), f"{c.end:.2f}") for c in curves]
    margin = max(text_width(" ".join(label), LABEL_SIZE) for label in labels) + (30 if wide else 18)
    bottom = 26 + max(300.0 if wide else 250.0, LABEL_HEIGHT * len(curves) + 8)
    area = PlotArea(width, 40.0, width - margin, 26.0, bottom)
    farthest = max((x for curve in curves for x, _ in curve.points), default=0) or 1
    x_scale = LinearScale(0, farthest, area.left, area.right - 6)
    heights = [y for c in curves for y in ([y for _, y in c.points] or [c.end])]
    low, high = _widen(min(heights), max(heights))
    y_scale = LinearScale(low, high, area.bottom, area.top)
    parts = [_grid(x_scale, y_scale, area)]
    parts += [_line(curve, x_scale, y_scale, area) for curve in curves]
    wanted = [y_scale(curve.end) for curve in curves]
    places = place_labels(wanted, LABEL_HEIGHT, area.top, area.bottom)
    for curve, label, place in zip(curves, labels, places, strict=True):
        parts.append(_end_label(curve, label, place, x_scale, y_scale, area))
    words = "; ".join(
        f"{c.label} {'ends at' if c.points else 'stands at'} {c.end:.2f}" for c in curves
    )
    return draw_svg(width, area.bottom + 48, f"Bits per byte as the rungs learn: {words}", parts)


def signed(number: float) -> str:
    """Format a difference with its sign."""
    return f"{number:+.3f}".replace("-", "−")


def _ladder_scale(
    bars: list[Bar], marks: list[float], widths: list[float], edges: tuple[float, float, float]
) -> LinearScale:
    """Return a scale that holds every value, and leaves room for each flag on the right."""
    left, right, room = edges
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None] + marks
    low, high = _widen(min(values), max(values))
    for value, width in zip(marks, widths, strict=True):
        needed = (value - low) * (right - left) / max(room - width, 1)
        high = max(high, low + needed)
    return LinearScale(low, high, left, right)


def _widen(low: float, high: float) -> tuple[float, float]:
    """Return the range with a margin around it."""
    air = max((high - low) * 0.06, 0.02)
    return low - air, high + air


def _vertical_axis_lines(scale: LinearScale, area: PlotArea) -> str:
    ticks = round_ticks(scale.low, scale.high, 6 if area.width >= WIDE else 4)
    parts = [draw_line(area.left, area.bottom, area.right, area.bottom, "axis")]
    for tick, text in zip(ticks, format_ticks(ticks), strict=True):
        x = scale(tick)
        parts.append(draw_line(x, area.bottom, x, area.bottom + 5, "axis"))
        parts.append(draw_text(x, area.bottom + 20, text, "tick middle"))
    return "".join(parts)


def _clear_of_words(start: float, area: PlotArea) -> list[tuple[float, float]]:
    """Return the pieces of a vertical line from `start` to the ground that cross no words.

    On a phone the words of a row stand above its dot.
    """
    if area.width >= WIDE:
        return [(start, area.bottom)]
    tops = [
        area.top + NARROW_ROW * row for row in range(round((area.bottom - area.top) / NARROW_ROW))
    ]
    ends = [top + NARROW_WORDS[0] for top in tops] + [area.bottom]
    return list(zip([start, *(top + NARROW_WORDS[1] for top in tops)], ends, strict=True))


def _flags(
    flags: list[tuple[str, float]], levels: list[int], scale: LinearScale, area: PlotArea
) -> str:
    parts = []
    for (text, value), level in zip(flags, levels, strict=True):
        x, y = scale(value), area.top - 10 - LABEL_HEIGHT * level
        name, _, figure = text.rpartition(" ")
        parts += [
            draw_line(x, start, x, end, "mark") for start, end in _clear_of_words(y - 10, area)
        ]
        parts.append(
            f'<text x="{x + 5:.1f}" y="{y:.1f}" class="flag">{escape(name)} '
            f"<tspan>{figure}</tspan></text>"
        )
    return "".join(parts)


def _bar(bar: Bar, scale: LinearScale, area: PlotArea, top: float, best: bool) -> str:
    wide = area.width >= WIDE
    y = top + (21 if wide else 32)
    interval = "" if bar.low is None or bar.high is None else f"{bar.low:.2f}–{bar.high:.2f}"
    strong = "name best" if best else "name"
    parts = [draw_line(area.left, y, area.right, y, "row")]
    if bar.low is not None and bar.high is not None:
        parts.append(draw_whisker(scale(bar.low), scale(bar.high), y))
    parts.append(f'<circle cx="{scale(bar.value):.1f}" cy="{y:.1f}" r="{6 if best else 5}"/>')
    if wide:
        parts.append(draw_text(0, y - 2 if bar.note else y + 4, shorten(bar.label, 22), strong))
        parts.append(draw_text(0, y + 13, bar.note, "note"))
        parts.append(draw_text(area.width - 86, y + 4, f"{bar.value:.2f}", f"{strong} end"))
        parts.append(draw_text(area.width, y + 4, interval, "note end"))
    else:
        parts.append(draw_text(area.left, y - 12, shorten(bar.label, 22), strong))
        parts.append(draw_text(area.right - 78, y - 12, f"{bar.value:.2f}", f"{strong} end"))
        parts.append(draw_text(area.right, y - 12, interval, "note end"))
    says = f"{bar.label}: {bar.value:.3f} bits per byte" + (
        f", 95% interval {interval}" if interval else ""
    )
    return f'<g class="shade-{bar.shade}"><title>{escape(says)}</title>{"".join(parts)}</g>'


def _difference(row: DifferenceRow, scale: LinearScale, area: PlotArea, top: float) -> str:
    wide = area.width >= WIDE
    y = top + (21 if wide else 32)
    interval = (
        "" if row.low is None or row.high is None else f"{signed(row.low)} to {signed(row.high)}"
    )
    parts = [draw_line(area.left, y, area.right, y, "row")]
    parts += [
        f'<circle cx="{scale(x):.1f}" cy="{y + 9:.1f}" r="2.5" class="seed"/>' for x in row.points
    ]
    if row.low is not None and row.high is not None:
        parts.append(draw_whisker(scale(row.low), scale(row.high), y))
    parts.append(f'<circle cx="{scale(row.value):.1f}" cy="{y:.1f}" r="5"/>')
    if wide:
        parts += [draw_text(0, y - 2, row.label, "name"), draw_text(0, y + 13, row.note, "note")]
        parts += [
            draw_text(area.width, y - 2, signed(row.value), "name end"),
            draw_text(area.width, y + 13, interval, "note end"),
        ]
    else:
        parts.append(draw_text(area.left, y - 12, row.label, "name"))
        parts.append(
            draw_text(
                area.right,
                y - 12,
                f"{signed(row.value)} {interval and f'({interval})'}".strip(),
                "note end",
            )
        )
    says = f"{row.label}: {signed(row.value)} bits per byte" + (
        f", 95% interval {interval}" if interval else ""
    )
    return f'<g class="shade-4"><title>{escape(says)}</title>{"".join(parts)}</g>'


def _grid(x_scale: LinearScale, y_scale: LinearScale, area: PlotArea) -> str:
    parts = [draw_text(0, 10, "bits per byte (↓ lower is better)", "axis-name")]
    ticks = round_ticks(y_scale.low, y_scale.high, 5)
    for tick, text in zip(ticks, format_ticks(ticks), strict=True):
        y = y_scale(tick)
        parts.append(draw_line(area.left, y, area.right, y, "row"))
        parts.append(draw_text(area.left - 8, y + 4, text, "tick end"))
    parts.append(draw_line(area.left, area.bottom, area.right, area.bottom, "axis"))
    for tick in round_ticks(0, x_scale.high, 6 if area.width >= WIDE else 3):
        x = x_scale(tick)
        parts.append(draw_line(x, area.bottom, x, area.bottom + 5, "axis"))
        parts.append(draw_text(x, area.bottom + 19, format_tokens(tick), "tick middle"))
    parts.append(
        draw_text(
            (area.left + area.right) / 2,
            area.bottom + 39,
            "training tokens read",
            "axis-name middle",
        )
    )
    return "".join(parts)


def _line(curve: Curve, x_scale: LinearScale, y_scale: LinearScale, area: PlotArea) -> str:
    if not curve.points:
        y = y_scale(curve.end)
        return draw_line(area.left, y, area.right, y, "level")
    pixels = [(x_scale(x), y_scale(y)) for x, y in curve.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{escape(curve.label)}: {y:.3f} bits per '
        f"byte "
        f"after {x:,.0f} tokens</title></circle>"
        for (px, py), (x, y) in zip(pixels, curve.points, strict=True)
    )
    return f'<g class="shade-{curve.shade}"><path d="M{path}" class="curve"/>{dots}</g>'


def _end_label(
    curve: Curve,
    label: tuple[str, str],
    place: float,
    x_scale: LinearScale,
    y_scale: LinearScale,
    area: PlotArea,
) -> str:
    name, figure = label
    y, gap = y_scale(curve.end), 22 if area.width >= WIDE else 12
    start = x_scale(curve.points[-1][0]) + 5 if curve.points else area.right
    leader = (
        f'<path d="M{start:.1f} {y:.1f}H{area.right:.1f}L{area.right + gap - 4:.1f} {place:.1f}" '
        f'class="leader"/>'
    )
    return leader + (
        f'<text x="{area.right + gap:.1f}" y="{place + 4:.1f}" class="label">{escape(name)} '
        f'<tspan class="figure">{figure}</tspan></text>'
    )


def _in_words(bars: list[Bar], marks: dict[str, float]) -> str:
    figures = [(bar.label, bar.value) for bar in bars] + list(marks.items())
    return ", ".join(f"{name} {value:.2f}" for name, value in figures)
