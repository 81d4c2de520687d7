"""The report: one page, offline and self-contained, made from run folders and nothing else.

For each text it shows the result in words, the figures and the samples; at the end, how they were
measured. All text that comes from a run is escaped. `page.html` is the template with the style
sheet; no script runs in it.
"""

from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from rung import runs
from rung.errors import RunError
from rung.evaluation.metrics import LZMA_AFTER_TRAIN, SOURCE_MARK
from rung.files import write_atomically
from rung.full_disk import explain_failed_writes
from rung.ladder import is_counting
from rung.report import axes, charts
from rung.report.novelty import build_novelty
from rung.report.pairs import build_pairs_table, draw_pair_charts
from rung.report.samples import build_samples, build_surprisal
from rung.report.summaries import ComparableRuns, ReportedRun, group_runs, read_runs
from rung.report.table import build_table, format_count, format_names

DEFINITIONS = {
    "Bits per byte": "The bits that the model needs for the text, −Σ log₂ p over all its tokens, "
    "divided by the text’s UTF-8 bytes. It does not depend on how the text is cut into tokens, so "
    "it compares any rung with any other, and with a compressor.",
    "Word perplexity": "e to the power of the mean negative log-likelihood of a word between white "
    "space: the number of equally likely words that would be as hard to choose from. It compares "
    "across tokenizers, on the same text.",
    "Token perplexity": "The same for a token. It compares only where the tokenizer is the same.",
    "95% interval": "Student’s t over the test documents, with the variance of a ratio and the "
    "degrees of freedom of the effective number of documents; copies of a document count once. It "
    "says how far bits per byte would move on other documents of this kind. All rungs read the "
    "same documents and move together, so a difference can be real where two intervals overlap.",
    "What is scored": "Every held-out document, each token of it once, from a begin-of-text token "
    "that is not scored to its end-of-text token, which is. A word that the tokenizer does not "
    "know is charged for its spelling, byte by byte.",
}


def write_report(folders: Iterable[Path], out: Path, others: Iterable[ReportedRun] = ()) -> None:
    """Write the page about these runs to `out`, with a section for each text they were scored on.

    `others` are models that are no runs, which stand behind them.

    Raises `RunError` where there are no runs, where a folder is no run, or where `out` cannot be
    written.
    """
    found = [*read_runs(folders), *others]
    if not found:
        raise RunError(
            "no runs to report on: name at least one run folder (`rung runs` lists them)"
        )
    runs.make_folder(out.parent)
    with explain_failed_writes(out):
        write_atomically(out, _page(group_runs(found)))


def fill_page(title: str, body: str) -> str:
    """Fill the template with a title and with `body`, which is HTML."""
    template = resources.files("rung.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), body=body)


def _page(groups: list[ComparableRuns]) -> str:
    """Build the whole page: an article for each text, then the method."""
    titles = dict.fromkeys(_title(group) for group in groups)
    body = [_contents(groups)] if len(groups) > 1 else []
    body += [_article(group, f"text-{i}") for i, group in enumerate(groups, 1)]
    body.append(_method(groups))
    return fill_page(f"rung: {', '.join(titles)}", "\n".join(body))


def _contents(groups: list[ComparableRuns]) -> str:
    links = "".join(
        f'<li><a href="#text-{i}">{escape(_title(group))}</a> '
        f"{format_names(run.label for run in group.runs)}</li>"
        for i, group in enumerate(groups, 1)
    )
    return (
        "<nav><p>These runs were scored on different text, or some without the ends of documents. "
        "Their figures do not compare, so each text has a section of its own:</p>"
        f"<ol>{links}</ol></nav>"
    )


def _article(group: ComparableRuns, anchor: str) -> str:
    figures = (_header, _ladder, build_table, _pairs, _curves)
    texts = (build_samples, build_novelty, build_surprisal)
    sections = "".join(build(group) for build in (*figures, *texts))
    return f'<article id="{anchor}">{sections}</article>'


def _title(group: ComparableRuns) -> str:
    named = (run.corpus.get("name") for run in group.runs)
    unnamed = "A text without a name" if group.scored else "Runs without a score"
    return str(next((name for name in named if name), unnamed))


def _header(group: ComparableRuns) -> str:
    return build_header(_title(group), _summary(group), group)


def build_header(title: str, summary: str, group: ComparableRuns) -> str:
    """Build the header: the title, the summary (which is HTML), and the facts of the runs."""
    facts = "".join(
        f"<div><dt>{term}</dt><dd>{fact}</dd></div>" for term, fact in _facts(group) if fact
    )
    return (
        f'<header><h1>{escape(title)}</h1><p class="summary">{summary}</p><dl '
        f'class="facts">{facts}</dl></header>'
    )


def _summary(group: ComparableRuns) -> str:
    """Write the result in one sentence: the best rung, the best of the other kind, and lzma."""
    best = group.best
    if best is None:
        return (
            "No rung had the time to learn anything."
            if group.scored
            else "No rung has a score yet."
        )
    parts = [
        f"{_strong(best.label)} needs {_bits(best.cost)}{best.mark} bits for each byte of text it "
        "has never seen"
    ]
    others = [
        run for run in group.scored if is_counting(run.row.rung) != is_counting(best.row.rung)
    ]
    if others and all(run.row.doubt for run in others):
        parts.append("the trained rungs had too little time to be compared")
    elif others:
        others = [run for run in others if not run.row.doubt]
        other = min(others, key=lambda run: run.cost)
        kind = "counting alone" if is_counting(other.row.rung) else "the best trained rung"
        parts.append(f"{kind} ({escape(other.label)}) needs {_bits(other.cost)}{other.mark}")
    alone, after = group.marks.get("lzma"), group.marks.get(LZMA_AFTER_TRAIN)
    if alone is not None:
        parts.append(f"lzma needs {_bits(alone)}")
    if alone is not None and after is not None:
        parts[-1] += f", or {_bits(after)} once it has read the training text"
    if SOURCE_MARK in group.marks:
        parts.append(f"the source itself needs {_bits(group.marks[SOURCE_MARK])}")
    return "; ".join(parts) + "."


def _facts(group: ComparableRuns) -> list[tuple[str, str]]:
    some = (group.scored or group.runs)[0]
    score, documents, size = (
        some.score,
        some.corpus.get("documents", {}),
        some.corpus.get("bytes", {}),
    )
    kinds = (
        f"{run.tokenizer.get('kind')}, {format_count(run.tokenizer.get('vocab_size'))} tokens"
        for run in group.runs
        if run.tokenizer
    )
    return [
        ("Test text", _extent(score.get("documents"), score.get("bytes"))),
        ("Training text", _extent(documents.get("train"), size.get("train"))),
        ("Tokenizer", _distinct(kinds)),
        ("Hardware", _distinct(run.record.get("hardware") for run in group.runs)),
        ("Seed", _distinct(run.record.get("seed") for run in group.runs)),
        ("Corpus fingerprint", _distinct([some.corpus.get("fingerprint")])),
    ]


def _ladder(group: ComparableRuns) -> str:
    if not group.scored:
        return ""
    shades = shade_runs(group)
    bars = [
        charts.Bar(
            label=run.label + run.mark,
            note=run.row.idea,
            value=run.cost,
            low=run.row.low,
            high=run.row.high,
            shade=shades[run.label],
        )
        for run in group.scored
    ]
    caption = (
        "A dot is a rung’s bits per byte of unseen text, further left is better, and the bar "
        "through it is the 95% interval."
    )
    if group.marks:
        caption += " A vertical line is what a compressor needs for the same text."
    if SOURCE_MARK in group.marks:
        caption += " The source itself is the true probability of the text."
    return build_figure(
        "The ladder",
        caption,
        [charts.draw_ladder(bars, group.marks, width) for width in axes.CHART_WIDTHS],
    )


def _pairs(group: ComparableRuns) -> str:
    found = [run for run in group.runs if run.row.pairs]
    if not found:
        return ""
    drawings = draw_pair_charts(found, shade_runs(group))
    caption = (
        "The share of minimal pairs whose good sentence a rung finds likelier than the bad one, "
        "and its 95% interval. Further right, or higher, is better; the dotted line is chance."
    )
    charts_below = "".join(f"<figure>{''.join(drawing)}</figure>" for drawing in drawings[1:])
    return build_figure(
        "Minimal pairs", caption, [*drawings[0], charts_below, build_pairs_table(found)]
    )


def _curves(group: ComparableRuns) -> str:
    shades = shade_runs(group)
    learners = [run for run in group.runs if run.curve and not is_counting(run.row.rung)]
    if not learners:
        return ""
    curves = [
        charts.Curve(
            label=run.label,
            points=run.curve if run in learners else [],
            level=run.curve[-1][1],
            shade=shades[run.label],
        )
        for run in group.runs
        if run.curve
    ]
    caption = (
        "Bits per byte of validation text after so many training tokens. Lower is better, and a "
        "line that still falls at its end would gain from more time."
    )
    if len(curves) > len(learners):
        caption += " A dashed line is a rung that counts: it reads the training text once."
    return build_figure(
        "Learning", caption, [charts.draw_curves(curves, width) for width in axes.CHART_WIDTHS]
    )


def build_figure(title: str, caption: str, drawings: list[str]) -> str:
    """Build a section with one chart, drawn for a screen and for a phone."""
    figure = f"<figure><figcaption>{caption}</figcaption>{''.join(drawings)}</figure>"
    return f"<section><h2>{title}</h2>{figure}</section>"


def _method(groups: list[ComparableRuns]) -> str:
    found = [run for group in groups for run in group.runs]
    terms = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in DEFINITIONS.items())
    versions: dict[str, list[str]] = {}
    for run in found:
        for name, version in (run.record.get("versions") or {}).items():
            versions.setdefault(name, []).append(version)
    listed = " · ".join(
        f"{escape(name)} {_distinct(numbers)}" for name, numbers in versions.items()
    )
    software = f"<dt>Versions</dt><dd>{listed}</dd>" if listed else ""
    recipes = "".join(map(_recipe, found))
    return (
        f'<section class="method"><h2>How it was measured</h2><dl>{terms}{software}</dl>'
        f'<h3>Recipes</h3><div class="recipes">{recipes}</div></section>'
    )


def _recipe(run: ReportedRun) -> str:
    lines = "\n".join(
        f"{key}: {_plain(value)}" for key, value in _flatten(run.record.get("recipe") or {})
    )
    folder = f" <span>{escape(run.row.name)}</span>" if run.label != run.row.name else ""
    page = escape(lines) or "no recipe was recorded"
    return f"<details><summary>{escape(run.label)}{folder}</summary><pre>{page}</pre></details>"


def _flatten(value: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flatten(inner, f"{before}{key}.")
        elif inner != {}:
            yield f"{before}{key}", inner


def _plain(value: Any) -> str:
    """Format a value as YAML does."""
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _bits(number: float) -> str:
    return _strong(f"{number:.2f}")


def _strong(text: str) -> str:
    return f"<b>{escape(text)}</b>"


def _extent(documents: int | None, size: int | None) -> str:
    if not documents or not size:
        return ""
    plural = "s" if documents > 1 else ""
    return f"{format_count(documents)} document{plural}, {format_count(size)} bytes"


def _distinct(values: Iterable[Any]) -> str:
    return escape("; ".join(dict.fromkeys(str(value) for value in values if value is not None)))


def shade_runs(group: ComparableRuns) -> dict[str, int]:
    """Return the shade of each run, from the lowest rung to the highest."""
    last = max(len(group.runs) - 1, 1)
    return {
        run.label: round(i * (charts.SHADE_STEPS - 1) / last) for i, run in enumerate(group.runs)
    }
