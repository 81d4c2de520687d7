"""The report of the swaps between GPT-2 and Llama 3: a table and a chart of several seeds."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rung import runs
from rung.errors import RunError
from rung.evaluation.metrics import confidence_interval
from rung.files import write_atomically
from rung.full_disk import explain_failed_writes
from rung.models.swaps import SWAPS
from rung.report import axes, charts
from rung.report.page import build_figure, build_header, fill_page
from rung.report.summaries import ComparableRuns, ReportedRun, read_runs
from rung.report.table import format_count, make_cell

BASE_RUNG, END_RUNG = "gpt2", "llama3"
HEADS = (
    "parameters",
    "training<br>seconds",
    "seeds",
    "bits<br>per byte",
    "difference",
    "95% interval",
)
METHOD = {
    "What is compared": "The first model is GPT-2. Every other one is GPT-2 with one part of Llama "
    "3 in the place of its own, and the last has all six. Width, layers, heads, optimizer, "
    "learning rate, steps, batches, tokens read and, for one seed, the order of the text are the "
    "same for all. Seconds and parameters differ, so the table shows them. GPT-2 as published ties "
    "its head to its embeddings; here it begins untied, and tying is one of the swaps.",
    "How each part begins": "Each part begins with the weights that its own model gives it: "
    "learned positions as sinusoids, rotary ones with a vector common to all tokens. In all models "
    "the weights that write to the residual stream begin smaller by the depth, as in GPT-2. SwiGLU "
    "is as large as the GELU layer, two thirds as wide and with three matrices. Without biases, "
    "LayerNorm has none either.",
    "95% interval": "Student’s t over the seeds, of the mean of the differences between two runs "
    "with the same seed. It says how far the figure would move with other seeds, on this text, at "
    "this size. It is not corrected for several comparisons.",
}


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds, with a 95% interval from two seeds on."""

    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return mean ± t · s / √n (Student 1908); None for a single seed."""
        found = confidence_interval(self.values, [1] * len(self.values))
        return None if found.low is None or found.high is None else (found.low, found.high)


@dataclass(frozen=True, kw_only=True)
class SwapResult:
    """The runs of one model over the seeds.

    `difference` is from the base, seed by seed, in bits per byte; None for the base, and where no
    seed has both.
    """

    name: str
    idea: str
    parameters: int
    seconds: float  # of training, the mean
    bits: SeedMean
    difference: SeedMean | None

    @property
    def is_clear(self) -> bool:
        """Return whether the interval of the difference is on one side of zero."""
        interval = self.difference.interval if self.difference else None
        return interval is not None and (interval[0] > 0 or interval[1] < 0)


def read_swaps(folders: Iterable[Path]) -> list[SwapResult]:
    """Return a row for each model with a finished run: the base, each swap, all of them.

    Raises `RunError` for a folder that is no run.
    """
    return _make_rows([run for run in read_runs(folders) if run.row.bits_per_byte is not None])


def write_swaps(folders: Iterable[Path], out: Path) -> None:
    """Write the page about these runs to `out`.

    Raises `RunError` where no run is finished, or where `out` cannot be written.
    """
    found = read_runs(folders)
    group = ComparableRuns([run for run in found if run.row.bits_per_byte is not None])
    runs.make_folder(out.parent)
    if not group.runs:
        raise RunError(f"no run of {out.parent} is finished: there is nothing to compare")
    rows = _make_rows(group.runs)
    corpus = str(group.runs[0].corpus.get("name"))
    body = (
        build_header(
            f"{corpus}: from {BASE_RUNG} to {END_RUNG}, one swap at a time", _summary(rows), group
        )
        + _chart(rows)
        + build_swaps_table(rows, group.runs[0].record["training"])
        + _method(found)
    )
    with explain_failed_writes(out):
        write_atomically(
            out,
            fill_page(f"rung: {corpus}, {BASE_RUNG} to {END_RUNG}", f"<article>{body}</article>"),
        )


def sum_of_parts(rows: list[SwapResult]) -> str:
    """Say in words whether the swaps add up; empty where one of them is missing."""
    alone = [row.difference.mean for row in rows if row.name in SWAPS and row.difference]
    together = next((row.difference for row in rows if row.name == END_RUNG), None)
    if len(alone) < len(SWAPS) or together is None:
        return ""
    return (
        f"The six alone add up to {sum(alone):+.3f} bits per byte; together they make "
        f"{together.mean:+.3f}."
    )


def _make_rows(found: list[ReportedRun]) -> list[SwapResult]:
    by_name: dict[str, dict[int, ReportedRun]] = {
        name: {} for name in (BASE_RUNG, *SWAPS, END_RUNG)
    }
    for run in found:
        by_name[_name(run)][run.record["seed"]] = run
    base = by_name[BASE_RUNG]
    return [_make_row(name, seeds, base) for name, seeds in by_name.items() if seeds]


def _name(run: ReportedRun) -> str:
    swaps = run.record["recipe"]["model"]["swaps"]
    return BASE_RUNG if not swaps else END_RUNG if len(swaps) == len(SWAPS) else swaps[0]


def _make_row(name: str, seeds: dict[int, ReportedRun], base: dict[int, ReportedRun]) -> SwapResult:
    both = [] if name == BASE_RUNG else [seed for seed in seeds if seed in base]
    ends = {BASE_RUNG: "with an untied head", END_RUNG: "all six"}
    return SwapResult(
        name=name,
        idea=ends.get(name) or " → ".join(SWAPS[name]),
        parameters=next(iter(seeds.values())).row.parameters or 0,
        seconds=statistics.fmean(run.row.seconds or 0.0 for run in seeds.values()),
        bits=SeedMean([run.cost for run in seeds.values()]),
        difference=SeedMean([seeds[seed].cost - base[seed].cost for seed in both])
        if both
        else None,
    )


def _summary(rows: list[SwapResult]) -> str:
    compared = [(row.difference.mean, row) for row in rows if row.name in SWAPS and row.difference]
    if not compared:
        return "No model has been compared yet."
    mean, best = min(compared, key=lambda pair: pair[0])
    clear = [row.name for row in rows if row.name in SWAPS and row.is_clear]
    says = f"The best swap is <b>{best.name}</b>, with <b>{charts.signed(mean)}</b> bits per byte. "
    says += f"Clear of zero: {', '.join(clear)}. " if clear else "No swap alone is clear of zero. "
    return says + sum_of_parts(rows).replace("-", "−")


def _chart(rows: list[SwapResult]) -> str:
    differences = [
        charts.DifferenceRow(
            label=row.name,
            note=row.idea,
            points=row.difference.values,
            value=row.difference.mean,
            low=row.difference.interval[0] if row.difference.interval else None,
            high=row.difference.interval[1] if row.difference.interval else None,
        )
        for row in rows
        if row.difference
    ]
    if not differences:
        return ""
    caption = (
        "The bits per byte that each swap adds to GPT-2’s; left of the line it saves them. A small "
        "dot is a seed, the large one their mean, the bar its 95% interval. A swap whose bar "
        "crosses the line may have no effect."
    )
    drawings = [
        charts.draw_differences(differences, BASE_RUNG, width) for width in axes.CHART_WIDTHS
    ]
    return build_figure("What each swap buys", caption, drawings)


def build_swaps_table(rows: list[SwapResult], training: dict[str, int]) -> str:
    """Build the table's section, a row for each model; `training` is the record of any run."""
    cells = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    body = "".join(_table_row(row) for row in rows)
    steps, tokens = training["steps"], training["tokens"]
    return (
        '<section><h2>The figures</h2><p class="caption">Means over the seeds; the difference is '
        f"from the first row. Every run took {format_count(steps)} steps of "
        f"{format_count(tokens / steps)} tokens.</p>"
        '<div class="scroll" role="region" aria-label="The figures" tabindex="0"><table><thead><tr>'
        f'<th scope="col">model</th><th scope="col">swap</th>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _table_row(row: SwapResult) -> str:
    difference, interval = row.difference, row.difference and row.difference.interval
    figures = (
        ("figure", format_count(row.parameters)),
        ("figure", f"{row.seconds:.1f}"),
        ("figure", str(len(row.bits.values))),
        ("figure", f"{row.bits.mean:.3f}"),
        ("key", charts.signed(difference.mean) if difference else ""),
        ("interval", " to ".join(map(charts.signed, interval)) if interval else ""),
    )
    cells = "".join(
        make_cell(kind, head, text) for (kind, text), head in zip(figures, HEADS, strict=True)
    )
    mark = " class=best" if row.is_clear and difference and difference.mean < 0 else ""
    return (
        f'<tr{mark}><th scope="row">{escape(row.name)}</th><td>{escape(row.idea)}</td>{cells}</tr>'
    )


def _method(found: list[ReportedRun]) -> str:
    terms = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in METHOD.items())
    failed = [f"{run.row.name}: {run.row.failed}" for run in found if run.row.failed]
    missing = f"<dt>Not in the figures</dt><dd>{escape('; '.join(failed))}</dd>" if failed else ""
    return (
        f'<section class="method"><h2>How it was measured</h2><dl>{terms}{missing}</dl></section>'
    )
