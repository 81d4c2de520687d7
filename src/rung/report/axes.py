"""Parts of a chart in SVG: scales, ticks, and labels that do not overlap."""

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

CHART_WIDTHS = WIDE, NARROW = 880, 360  # CSS pixels
LABEL_SIZE = 12  # CSS pixels, the size of most labels
LABEL_HEIGHT = 17  # from one label to the next below it


@dataclass(frozen=True)
class LinearScale:
    """A linear map from values to pixels: `low` falls on `start`, `high` on `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class PlotArea:
    """The rectangle in which values are drawn, in pixels; `width` is that of the whole chart."""

    width: int
    left: float
    right: float
    top: float
    bottom: float


def place_labels(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels as little as possible so that they are at least `gap` apart, in their order.

    Solves least squares by pooling neighbours that collide. All labels lie between `low` and
    `high`; where there is no room for all, they are set `gap` apart from `low` on.
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    pools: list[tuple[float, int]] = []  # mean and size of each stack of labels
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
    """Return a level for each flag (x, width of its text) so that texts meet no text and no pole.

    The text is to the right of the pole, which stands from the ground to the flag's level. So a
    flag must be above every pole that its text crosses.
    """
    levels = [0] * len(flags)
    done: list[int] = []
    for which in sorted(range(len(flags)), key=lambda i: flags[i][0], reverse=True):
        x, width = flags[which]
        levels[which] = max((levels[i] + 1 for i in done if flags[i][0] < x + width), default=0)
        done.append(which)
    return levels


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def text_width(text: str, size: float) -> float:
    """Estimate a text's width in pixels, on the wide side, for the reader's font is unknown."""
    return size * sum(1.05 if unicodedata.east_asian_width(c) in "WF" else 0.58 for c in text)


def draw_svg(width: int, height: float, says: str, parts: Iterable[str]) -> str:
    kind = "wide" if width >= WIDE else "narrow"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(says)}">'
        f"{''.join(parts)}</svg>"
    )


def draw_text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>' if text else ""


def draw_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="{kind}"/>'


def draw_whisker(start: float, end: float, y: float) -> str:
    """Draw the bar of an interval at the height `y`."""
    caps = "".join(f"M{x:.1f} {y - 5:.1f}V{y + 5:.1f}" for x in (start, end))
    return f'<path d="M{start:.1f} {y:.1f}H{end:.1f}{caps}" class="whisker"/>'


def format_ticks(ticks: list[float]) -> list[str]:
    """Format ticks with as many decimals as the finest one needs."""
    decimals = next((d for d in range(4) if all(abs(round(t, d) - t) < 1e-9 for t in ticks)), 4)
    return [f"{tick:.{decimals}f}".replace("-", "−") for tick in ticks]


def format_tokens(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a text that is too long; names of like runs differ at their ends."""
    return (
        text if len(text) <= length else f"{text[: length // 2]}…{text[1 + length // 2 - length :]}"
    )
