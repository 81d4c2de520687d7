"""The report's figures as inline SVG: drawn here, coloured by the classes of the page's style
sheet.

Every figure is drawn twice, for a screen and for a phone; the style sheet shows the one that fits.
"""

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

WIDTHS = WIDE, NARROW = 880, 360  # CSS pixels
SHADES = 6  # steps from the lowest rung to the highest, in the style sheet
TEXT = 12  # CSS pixels, the size of most labels
LINE = 17  # from one label to the next below it
ROW, NARROW_ROW = 42, 46  # the height of a rung's, on a screen and on a phone
WORDS = 6, 26  # where in a phone's row its words begin and end


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of the ladder: what the rung costs, and its interval where it has one."""

    label: str
    note: str
    value: float
    low: float | None
    high: float | None
    shade: int


@dataclass(frozen=True, kw_only=True)
class DifferenceRow:
    """A row of differences: one dot for each seed, their mean, and its interval where there are
    seeds enough.
    """

    label: str
    note: str
    points: list[float]
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of (x, y) points with its label at the end; without points, a dashed line at the
    height `level`.
    """

    label: str
    points: list[tuple[float, float]]
    level: float | None
    shade: int

    @property
    def end(self) -> float:
        """The height at which the line ends."""
        return self.points[-1][1] if self.points else self.level or 0.0


@dataclass(frozen=True)
class LinearScale:
    """A straight line from values to pixels: `low` falls on `start`, `high` on `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class PlotArea:
    """The rectangle in which values are drawn, in pixels; labels stand around it."""

    width: int
    left: float
    right: float
    top: float
    bottom: float


def place_labels(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart between `low` and `high`, as near as can be to those wanted,
    in their order.

    The least-squares answer, by pooling neighbours that collide. Where there is no room for all,
    they are set `gap` apart from `low` on.
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    pools: list[tuple[float, int]] = []  # mean and size of the labels that stand in one stack
    for place, which in enumerate(order):
        mean, size = wanted[which] - place * gap, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    first = [mean for mean, size in pools for _ in range(size)]
    ceiling = max(low, high - (len(wanted) - 1) * gap)
    placed = [0.0] * len(wanted)
    for place, which in enumerate(order):
        placed[which] = min(max(first[place], low), ceiling) + place * gap
    return placed


def stack_flags(flags: list[tuple[float, float]]) -> list[int]:
    """The level of each flag (x of its pole, width of its text), so that no text meets another text
    or a pole.

    The text is to the right of the pole, which stands from the ground to the flag's own level: a
    flag has to be above every pole that its text flies over.
    """
    levels = [0] * len(flags)
    done: list[int] = []
    for which in sorted(range(len(flags)), key=lambda i: flags[i][0], reverse=True):
        x, width = flags[which]
        levels[which] = max((levels[i] + 1 for i in done if flags[i][0] < x + width), default=0)
        done.append(which)
    return levels


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def draw_ladder(bars: list[Bar], marks: dict[str, float], width: int) -> str:
    """One row for each rung, a dot at its bits per byte, and the compressors' marks as lines across
    all rows.
    """
    wide = width >= WIDE
    row_height = ROW if wide else NARROW_ROW
    names = max(max(text_width(_shorten(b.label, 22), 14), text_width(b.note, TEXT)) for b in bars)
    left, right = (names + 20, width - 136.0) if wide else (10.0, width - 10.0)
    flags = [
        (f"{name} {value:.2f}", value) for name, value in marks.items() if math.isfinite(value)
    ]
    widths = [text_width(text, TEXT) + 12 for text, _ in flags]
    room = width - 2 - left  # a flag may fly over the column of values
    scale = _ladder_scale(bars, [v for _, v in flags], widths, (left, right, room))
    levels = stack_flags([(scale(v), w) for (_, v), w in zip(flags, widths, strict=True)])
    top = 14 + LINE * (max(levels) + 1) if flags else 8
    frame = PlotArea(width, left, right, top, top + row_height * len(bars))
    parts = [_vertical_axis_lines(scale, frame), _flags(flags, levels, scale, frame)]
    best = min(bar.value for bar in bars)
    for i, bar in enumerate(bars):
        parts.append(_bar(bar, scale, frame, top + row_height * i, bar.value == best))
    parts.append(
        _text(
            (left + right) / 2,
            frame.bottom + 40,
            "bits per byte (← lower is better)",
            "axis-name middle",
        )
    )
    return _svg(
        width, frame.bottom + 50, "Bits per byte of each rung: " + _in_words(bars, marks), parts
    )


def draw_differences(rows: list[DifferenceRow], base: str, width: int) -> str:
    """One row for each difference in bits per byte: a dot with whiskers, and a line where `base`
    stands.
    """
    wide = width >= WIDE
    row_height = ROW if wide else NARROW_ROW
    names = max(text_width(row.note, TEXT) for row in rows)
    left, right = (names + 20, width - 150.0) if wide else (10.0, width - 10.0)
    values = [0.0, *(v for row in rows for v in (row.low, row.high, *row.points) if v is not None)]
    low, high = min(values), max(values)
    air = max((high - low) * 0.06, 0.002)
    scale = LinearScale(low - air, high + air, left, right)
    frame = PlotArea(width, left, right, 22.0, 22.0 + row_height * len(rows))
    zero = scale(0)
    parts = [_vertical_axis_lines(scale, frame)]
    parts += [
        _rule(zero, start, zero, end, "axis")
        for start, end in _clear_of_words(frame.top - 4, frame)
    ]
    parts.append(_text(zero, frame.top - 10, base, "tick middle"))
    parts += [
        _difference(row, scale, frame, frame.top + row_height * i) for i, row in enumerate(rows)
    ]
    name = f"bits per byte more than {base} (← lower is better)"
    parts.append(_text((left + right) / 2, frame.bottom + 40, name, "axis-name middle"))
    words = ", ".join(f"{row.label} {signed(row.value)}" for row in rows)
    return _svg(
        width, frame.bottom + 50, f"DifferenceRow from {base} in bits per byte: {words}", parts
    )


def draw_curves(curves: list[Curve], width: int) -> str:
    """Bits per byte against training tokens, each line labelled at its end."""
    wide = width >= WIDE
    labels = [(_shorten(c.label, 24 if wide else 14), f"{c.end:.2f}") for c in curves]
    margin = max(text_width(" ".join(label), TEXT) for label in labels) + (30 if wide else 18)
    bottom = 26 + max(300.0 if wide else 250.0, LINE * len(curves) + 8)
    frame = PlotArea(width, 40.0, width - margin, 26.0, bottom)
    farthest = max((x for curve in curves for x, _ in curve.points), default=0) or 1
    x_scale = LinearScale(0, farthest, frame.left, frame.right - 6)
    heights = [y for c in curves for y in ([y for _, y in c.points] or [c.end])]
    low, high = _widen(min(heights), max(heights))
    y_scale = LinearScale(low, high, frame.bottom, frame.top)
    parts = [_grid(x_scale, y_scale, frame)]
    parts += [_line(curve, x_scale, y_scale, frame) for curve in curves]
    wanted = [y_scale(curve.end) for curve in curves]
    places = place_labels(wanted, LINE, frame.top, frame.bottom)
    for curve, label, place in zip(curves, labels, places, strict=True):
        parts.append(_end_label(curve, label, place, x_scale, y_scale, frame))
    words = "; ".join(
        f"{c.label} {'ends at' if c.points else 'stands at'} {c.end:.2f}" for c in curves
    )
    return _svg(width, frame.bottom + 48, f"Bits per byte as the rungs learn: {words}", parts)


def signed(number: float) -> str:
    """A difference, with its sign."""
    return f"{number:+.3f}".replace("-", "−")


def text_width(text: str, size: float) -> float:
    """About how wide a text is in pixels: generous, for the reader's font is not known here."""
    return size * sum(1.05 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)


def _ladder_scale(
    bars: list[Bar], marks: list[float], widths: list[float], edges: tuple[float, float, float]
) -> LinearScale:
    """A scale that holds every value, and leaves each flag room on the right."""
    left, right, room = edges
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None] + marks
    low, high = _widen(min(values), max(values))
    for value, width in zip(marks, widths, strict=True):
        needed = (value - low) * (right - left) / max(room - width, 1)
        high = max(high, low + needed)
    return LinearScale(low, high, left, right)


def _widen(low: float, high: float) -> tuple[float, float]:
    """Some air around the values."""
    air = max((high - low) * 0.06, 0.02)
    return low - air, high + air


def _vertical_axis_lines(scale: LinearScale, frame: PlotArea) -> str:
    ticks = round_ticks(scale.low, scale.high, 6 if frame.width >= WIDE else 4)
    parts = [_rule(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for tick, text in zip(ticks, _tick_texts(ticks), strict=True):
        x = scale(tick)
        parts.append(_rule(x, frame.bottom, x, frame.bottom + 5, "axis"))
        parts.append(_text(x, frame.bottom + 20, text, "tick middle"))
    return "".join(parts)


def _clear_of_words(start: float, frame: PlotArea) -> list[tuple[float, float]]:
    """An upright line from `start` to the ground, in pieces: on a phone the words of a row stand
    above its dot.
    """
    if frame.width >= WIDE:
        return [(start, frame.bottom)]
    tops = [
        frame.top + NARROW_ROW * row
        for row in range(round((frame.bottom - frame.top) / NARROW_ROW))
    ]
    ends = [top + WORDS[0] for top in tops] + [frame.bottom]
    return list(zip([start, *(top + WORDS[1] for top in tops)], ends, strict=True))


def _flags(
    flags: list[tuple[str, float]], levels: list[int], scale: LinearScale, frame: PlotArea
) -> str:
    parts = []
    for (text, value), level in zip(flags, levels, strict=True):
        x, y = scale(value), frame.top - 10 - LINE * level
        name, _, figure = text.rpartition(" ")
        parts += [_rule(x, start, x, end, "mark") for start, end in _clear_of_words(y - 10, frame)]
        parts.append(
            f'<text x="{x + 5:.1f}" y="{y:.1f}" class="flag">{escape(name)} '
            f"<tspan>{figure}</tspan></text>"
        )
    return "".join(parts)


def _bar(bar: Bar, scale: LinearScale, frame: PlotArea, top: float, best: bool) -> str:
    wide = frame.width >= WIDE
    y = top + (21 if wide else 32)
    interval = "" if bar.low is None or bar.high is None else f"{bar.low:.2f}–{bar.high:.2f}"
    strong = "name best" if best else "name"
    parts = [_rule(frame.left, y, frame.right, y, "row")]
    if bar.low is not None and bar.high is not None:
        parts.append(_whisker(scale(bar.low), scale(bar.high), y))
    parts.append(f'<circle cx="{scale(bar.value):.1f}" cy="{y:.1f}" r="{6 if best else 5}"/>')
    if wide:
        parts.append(_text(0, y - 2 if bar.note else y + 4, _shorten(bar.label, 22), strong))
        parts.append(_text(0, y + 13, bar.note, "note"))
        parts.append(_text(frame.width - 86, y + 4, f"{bar.value:.2f}", f"{strong} end"))
        parts.append(_text(frame.width, y + 4, interval, "note end"))
    else:
        parts.append(_text(frame.left, y - 12, _shorten(bar.label, 22), strong))
        parts.append(_text(frame.right - 78, y - 12, f"{bar.value:.2f}", f"{strong} end"))
        parts.append(_text(frame.right, y - 12, interval, "note end"))
    says = f"{bar.label}: {bar.value:.3f} bits per byte" + (
        f", 95% interval {interval}" if interval else ""
    )
    return f'<g class="shade-{bar.shade}"><title>{escape(says)}</title>{"".join(parts)}</g>'


def _difference(row: DifferenceRow, scale: LinearScale, frame: PlotArea, top: float) -> str:
    wide = frame.width >= WIDE
    y = top + (21 if wide else 32)
    interval = (
        "" if row.low is None or row.high is None else f"{signed(row.low)} to {signed(row.high)}"
    )
    parts = [_rule(frame.left, y, frame.right, y, "row")]
    parts += [
        f'<circle cx="{scale(x):.1f}" cy="{y + 9:.1f}" r="2.5" class="seed"/>' for x in row.points
    ]
    if row.low is not None and row.high is not None:
        parts.append(_whisker(scale(row.low), scale(row.high), y))
    parts.append(f'<circle cx="{scale(row.value):.1f}" cy="{y:.1f}" r="5"/>')
    if wide:
        parts += [_text(0, y - 2, row.label, "name"), _text(0, y + 13, row.note, "note")]
        parts += [
            _text(frame.width, y - 2, signed(row.value), "name end"),
            _text(frame.width, y + 13, interval, "note end"),
        ]
    else:
        parts.append(_text(frame.left, y - 12, row.label, "name"))
        parts.append(
            _text(
                frame.right,
                y - 12,
                f"{signed(row.value)} {interval and f'({interval})'}".strip(),
                "note end",
            )
        )
    says = f"{row.label}: {signed(row.value)} bits per byte" + (
        f", 95% interval {interval}" if interval else ""
    )
    return f'<g class="shade-4"><title>{escape(says)}</title>{"".join(parts)}</g>'


def _whisker(start: float, end: float, y: float) -> str:
    caps = "".join(f"M{x:.1f} {y - 5:.1f}V{y + 5:.1f}" for x in (start, end))
    return f'<path d="M{start:.1f} {y:.1f}H{end:.1f}{caps}" class="whisker"/>'


def _grid(x_scale: LinearScale, y_scale: LinearScale, frame: PlotArea) -> str:
    parts = [_text(0, 10, "bits per byte (↓ lower is better)", "axis-name")]
    ticks = round_ticks(y_scale.low, y_scale.high, 5)
    for tick, text in zip(ticks, _tick_texts(ticks), strict=True):
        y = y_scale(tick)
        parts.append(_rule(frame.left, y, frame.right, y, "row"))
        parts.append(_text(frame.left - 8, y + 4, text, "tick end"))
    parts.append(_rule(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    for tick in round_ticks(0, x_scale.high, 6 if frame.width >= WIDE else 3):
        x = x_scale(tick)
        parts.append(_rule(x, frame.bottom, x, frame.bottom + 5, "axis"))
        parts.append(_text(x, frame.bottom + 19, _count(tick), "tick middle"))
    parts.append(
        _text(
            (frame.left + frame.right) / 2,
            frame.bottom + 39,
            "training tokens read",
            "axis-name middle",
        )
    )
    return "".join(parts)


def _line(curve: Curve, x_scale: LinearScale, y_scale: LinearScale, frame: PlotArea) -> str:
    if not curve.points:
        y = y_scale(curve.end)
        return _rule(frame.left, y, frame.right, y, "level")
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
    frame: PlotArea,
) -> str:
    name, figure = label
    y, gap = y_scale(curve.end), 22 if frame.width >= WIDE else 12
    start = x_scale(curve.points[-1][0]) + 5 if curve.points else frame.right
    leader = (
        f'<path d="M{start:.1f} {y:.1f}H{frame.right:.1f}L{frame.right + gap - 4:.1f} {place:.1f}" '
        f'class="leader"/>'
    )
    return leader + (
        f'<text x="{frame.right + gap:.1f}" y="{place + 4:.1f}" class="label">{escape(name)} '
        f'<tspan class="figure">{figure}</tspan></text>'
    )


def _svg(width: int, height: float, says: str, parts: Iterable[str]) -> str:
    kind = "wide" if width >= WIDE else "narrow"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(says)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>' if text else ""


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="{kind}"/>'


def _in_words(bars: list[Bar], marks: dict[str, float]) -> str:
    figures = [(bar.label, bar.value) for bar in bars] + list(marks.items())
    return ", ".join(f"{name} {value:.2f}" for name, value in figures)


def _tick_texts(ticks: list[float]) -> list[str]:
    """As many decimals as the finest tick needs, the same for all."""
    decimals = next((d for d in range(4) if all(abs(round(t, d) - t) < 1e-9 for t in ticks)), 4)
    return [f"{tick:.{decimals}f}".replace("-", "−") for tick in ticks]


def _count(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def _shorten(text: str, length: int) -> str:
    """Without its middle where it is too long: runs of one family differ at the end of their
    names.
    """
    return (
        text if len(text) <= length else f"{text[: length // 2]}…{text[1 + length // 2 - length :]}"
    )
