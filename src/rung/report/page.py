"""The report: one page, offline and self-contained, made from run folders and nothing else.

For each text its result in words, its figures and what the rungs wrote; then how it was measured.
Whatever comes from a run is escaped. `page.html` is the frame with its style sheet; no script runs
in it.
"""

import math
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from rung import runs
from rung.errors import RunError
from rung.evaluation.metrics import LZMA_AFTER_TRAIN, REPLACEMENT_CHARACTER, REPLACEMENT_NOTE
from rung.files import write_atomically
from rung.report import charts
from rung.report.table import (
    ComparableRuns,
    ReportedRun,
    RunSummary,
    build_table,
    format_count,
    format_names,
    group_runs,
    read_runs,
)

__all__ = ["RunSummary", "read_summaries", "write_report"]

DARKEST = 12.0  # bits: a token above is shaded like it
DEFINITIONS = {
    "Bits per byte": "The bits that the model needs to tell the text, −Σ log₂ p over all its "
    "tokens, for each of the "
    "text’s UTF-8 bytes. It does not depend on how the text is cut into tokens: it compares any "
    "rung with any other, "
    "and with a compressor.",
    "Word perplexity": "e to the power of the mean negative log-likelihood of a white-space "
    "separated word: the model "
    "hesitates as if between so many equally likely words. It compares across tokenizers, on the "
    "same text.",
    "Token perplexity": "The same of a token. It compares only where the tokenizer is the same.",
    "95% interval": "Student’s t over the test documents, with the variance of a ratio and the "
    "degrees of freedom of "
    "as many documents of equal size as these are worth; copies of a document count once. "
    "It says how far bits per byte would move on other documents of this kind. All rungs read the "
    "same documents "
    "and move together, so a difference can be real where two intervals overlap.",
    "What is scored": "Every held-out document, each token of it once, from a begin-of-text token "
    "that is not "
    "scored to its end-of-text token, which is. A word that the tokenizer does not know is charged "
    "for its spelling, "
    "byte by byte.",
}


def read_summaries(folders: Iterable[Path]) -> list[RunSummary]:
    """The runs as the table shows them, in the order of the ladder.

    Raises `RunError` for a folder that is no run.
    """
    return [run.row for run in read_runs(folders)]


def write_report(folders: Iterable[Path], out: Path) -> None:
    """Write the page about these runs to `out`; figures over different text get sections of their
    own.

    Raises `RunError` for no runs, for a folder that is no run, or for a place that cannot be
    written to.
    """
    found = read_runs(folders)
    if not found:
        raise RunError(
            "no runs to report on: name at least one run folder (`rung runs` lists them)"
        )
    runs.make_folder(out.parent)
    with runs.explain_failed_writes(out.parent):
        write_atomically(out, _page(group_runs(found)))


def fill_page(title: str, body: str) -> str:
    """The frame with its style sheet around `body`, which is HTML."""
    template = resources.files("rung.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), body=body)


def _page(groups: list[ComparableRuns]) -> str:
    """The whole page: an article for each text, then how it was measured."""
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
        "<nav><p>These runs were scored on different text. Their figures do not compare, "
        f"so each text has a section of its own:</p><ol>{links}</ol></nav>"
    )


def _article(group: ComparableRuns, anchor: str) -> str:
    build = (_header, _ladder, build_table, _curves, _samples, _surprisal)
    return f'<article id="{anchor}">{"".join(section(group) for section in build)}</article>'


def _title(group: ComparableRuns) -> str:
    named = (run.corpus.get("name") for run in group.runs)
    unnamed = "A text without a name" if group.scored else "Runs without a score"
    return str(next((name for name in named if name), unnamed))


def _header(group: ComparableRuns) -> str:
    return build_header(_title(group), _summary(group), group)


def build_header(title: str, summary: str, group: ComparableRuns) -> str:
    """The title, the result in words (which is HTML), and what was measured with what."""
    facts = "".join(
        f"<div><dt>{term}</dt><dd>{fact}</dd></div>" for term, fact in _facts(group) if fact
    )
    return (
        f'<header><h1>{escape(title)}</h1><p class="summary">{summary}</p><dl '
        f'class="facts">{facts}</dl></header>'
    )


def _summary(group: ComparableRuns) -> str:
    """The result in one sentence: the best rung, the best of the other kind, and lzma."""
    best = group.best
    if best is None:
        return (
            "No rung had the time to learn anything."
            if group.scored
            else "No rung has a score yet."
        )
    parts = [
        f"{_strong(best.label)} needs {_bits(best.cost)}{best.mark} bits for each byte of text it "
        f"has never seen"
    ]
    others = [
        run
        for run in group.scored
        if (run.row.rung in runs.COUNTING) != (best.row.rung in runs.COUNTING)
    ]
    if others and all(run.row.doubt for run in others):
        parts.append("the trained rungs had too little time to be compared")
    elif others:
        others = [run for run in others if not run.row.doubt]
        other = min(others, key=lambda run: run.cost)
        kind = "counting alone" if other.row.rung in runs.COUNTING else "the best trained rung"
        parts.append(f"{kind} ({escape(other.label)}) needs {_bits(other.cost)}{other.mark}")
    alone, after = group.marks.get("lzma"), group.marks.get(LZMA_AFTER_TRAIN)
    if alone is not None:
        parts.append(f"lzma needs {_bits(alone)}")
    if alone is not None and after is not None:
        parts[-1] += f", or {_bits(after)} once it has read the training text"
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
    shades = _shades(group)
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
        "A dot is what one byte of unseen text costs that rung, and further left is better; the "
        "bar through it "
        "is the 95% interval"
        + (
            ", and the upright lines are what compressors pay for the same bytes."
            if group.marks
            else "."
        )
    )
    return build_figure(
        "The ladder",
        caption,
        [charts.draw_ladder(bars, group.marks, width) for width in charts.WIDTHS],
    )


def _curves(group: ComparableRuns) -> str:
    shades = _shades(group)
    learners = [run for run in group.runs if run.curve and run.row.rung not in runs.COUNTING]
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
        "Bits per byte of validation text after so many training tokens: lower is better, and a "
        "line that still "
        "falls at its end would gain from more time."
    )
    if len(curves) > len(learners):
        caption += " A dashed line is a rung that counts: it reads the training text once."
    return build_figure(
        "Learning", caption, [charts.draw_curves(curves, width) for width in charts.WIDTHS]
    )


def build_figure(title: str, caption: str, drawings: list[str]) -> str:
    """A section with one figure, drawn for a screen and for a phone."""
    figure = f"<figure><figcaption>{caption}</figcaption>{''.join(drawings)}</figure>"
    return f"<section><h2>{title}</h2>{figure}</section>"


def _samples(group: ComparableRuns) -> str:
    """A card for each run that wrote something."""
    told = [run for run in group.runs if run.row.sample is not None]
    cards = "".join(_card(escape(run.label), _sample(run)) for run in told)
    caption = (
        "Every rung goes on from the words in bold: look at how long it keeps to a word, a "
        "sentence, a subject."
    )
    if any(REPLACEMENT_CHARACTER in run.row.sample for run in told if run.row.sample):
        caption += f" {REPLACEMENT_NOTE}."
    return _gallery(
        "The same prompt, continued",
        caption,
        cards,
    )


def _sample(run: ReportedRun) -> str:
    prompt, sample = str(run.record.get("prompt") or ""), run.row.sample or ""
    glue = " " if prompt and _loses_space(run) and not sample[:1].isspace() else ""
    return f"<b>{escape(prompt)}</b>{glue}{escape(sample)}"


def _surprisal(group: ComparableRuns) -> str:
    """A card for each run that read the passage, every token on a shade of its bits."""
    told = [run for run in group.runs if run.record.get("passage")]
    cards = "".join(_card(_heading(run), _passage(run)) for run in told)
    scale = "".join(
        f'<span class="t" style="--b:{bits}"></span>' for bits in range(int(DARKEST) + 1)
    )
    return _gallery(
        "Where each rung is surprised",
        "The same unseen passage for every rung: the stronger a token’s shade, the more bits it "
        "cost (point at one to read how many); ⏎ is a token of line breaks, the square is the "
        "end-of-text token.",
        cards,
        f'<p class="scale"><span>0 bits</span><span class="steps">{scale}</span><span>12 or '
        f"more</span></p>",
    )


def _gallery(title: str, caption: str, cards: str, legend: str = "") -> str:
    if not cards:
        return ""
    return (
        f'<section><h2>{title}</h2><p class="caption">{caption}</p>{legend}<div '
        f'class="cards">{cards}</div></section>'
    )


def _card(heading: str, text: str) -> str:
    return f'<div class="card"><h3>{heading}</h3><p dir="auto">{text}</p></div>'


def _heading(run: ReportedRun) -> str:
    bits = sum(bits for _, bits in _costs(run))
    shown = format_count(bits) if math.isfinite(bits) else "infinitely many"
    return f"{escape(run.label)} <span>{shown} bits in all</span>"


def _costs(run: ReportedRun) -> list[tuple[str, float]]:
    """The passage's tokens and their bits; JSON has null for a token that was given probability
    0.
    """
    return [(text, math.inf if bits is None else bits) for text, bits in run.record["passage"]]


def _passage(run: ReportedRun) -> str:
    """The passage with each token on its shade."""
    return "".join(_token(text, bits) for text, bits in _whole_characters(_costs(run)))


def _whole_characters(passage: list[tuple[str, float]]) -> Iterable[tuple[str, float]]:
    """The tokens, with the later bytes of a character (pieces without text) added to its first; the
    end stays.
    """
    text, bits = "", 0.0
    for i, (piece, cost) in enumerate(passage):
        is_end = i == len(passage) - 1 and not piece
        if (piece or is_end) and i:
            yield text, bits
            bits = 0.0
        text, bits = piece or ("" if is_end else text), bits + cost
    yield text, bits


def _token(text: str, bits: float) -> str:
    shade = f'style="--b:{min(max(bits, 0), DARKEST):.1f}" title="{bits:.1f} bits'
    if not text:
        return (
            f'<span class="t end" {shade}, end of text" role="img" aria-label="end of text"></span>'
        )
    breaks = " breaks" if "\n" in text and text.isspace() else ""
    return f'<span class="t{breaks}" {shade}">{escape(text)}</span>'


def _loses_space(run: ReportedRun) -> bool:
    return "white space" in (run.tokenizer.get("lost") or ())


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
    """As YAML writes it."""
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


def _shades(group: ComparableRuns) -> dict[str, int]:
    """The depth of colour of each run, from the lowest rung to the highest."""
    last = max(len(group.runs) - 1, 1)
    return {run.label: round(i * (charts.SHADES - 1) / last) for i, run in enumerate(group.runs)}
