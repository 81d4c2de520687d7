"""The report's sections as HTML; whatever comes from a run is escaped."""

from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template
from typing import Any

from rung.report import charts
from rung.report.rows import COUNTING, Group, Run
from rung.report.table import build_table, names, whole
from rung.report.texts import build_samples, build_surprisal


def build_page(groups: list[Group]) -> str:
    """The whole page: an article for each text, then how it was measured."""
    template = resources.files("rung.report").joinpath("page.html").read_text(encoding="utf-8")
    titles = dict.fromkeys(_title(group) for group in groups)
    body = [_contents(groups)] if len(groups) > 1 else []
    body += [_article(group, f"text-{i}") for i, group in enumerate(groups, 1)]
    body.append(_method(groups))
    return Template(template).substitute(title=escape(f"rung: {', '.join(titles)}"), body="\n".join(body))


def _contents(groups: list[Group]) -> str:
    links = "".join(
        f'<li><a href="#text-{i}">{escape(_title(group))}</a> {names(run.label for run in group.runs)}</li>'
        for i, group in enumerate(groups, 1)
    )
    return (
        "<nav><p>These runs were scored on different text. Their figures do not compare, "
        f"so each text has a section of its own:</p><ol>{links}</ol></nav>"
    )


def _article(group: Group, anchor: str) -> str:
    build = (_header, _ladder, build_table, _curves, build_samples, build_surprisal)
    return f'<article id="{anchor}">{"".join(section(group) for section in build)}</article>'


def _title(group: Group) -> str:
    named = (run.corpus.get("name") for run in group.runs)
    unnamed = "A text without a name" if group.scored else "Runs without a score"
    return str(next((name for name in named if name), unnamed))


def _header(group: Group) -> str:
    facts = "".join(f"<div><dt>{term}</dt><dd>{fact}</dd></div>" for term, fact in _facts(group) if fact)
    return (
        f'<header><h1>{escape(_title(group))}</h1><p class="summary">{_summary(group)}</p>'
        f'<dl class="facts">{facts}</dl></header>'
    )


def _summary(group: Group) -> str:
    """The result in one sentence: the best rung, the best of the other kind, and lzma."""
    best = group.best
    if best is None:
        return "No rung has a score yet."
    parts = [f"{_strong(best.label)} needs {_bits(best.cost)} bits for each byte of text it has never seen"]
    others = [run for run in group.scored if (run.row.rung in COUNTING) != (best.row.rung in COUNTING)]
    if others:
        other = min(others, key=lambda run: run.cost)
        kind = "counting alone" if other.row.rung in COUNTING else "the best trained rung"
        parts.append(f"{kind} ({escape(other.label)}) needs {_bits(other.cost)}")
    alone, after = group.marks.get("lzma"), group.marks.get("lzma after train")
    if alone is not None:
        parts.append(f"lzma needs {_bits(alone)}")
    if alone is not None and after is not None:
        parts[-1] += f", or {_bits(after)} once it has read the training text"
    return "; ".join(parts) + "."


def _facts(group: Group) -> list[tuple[str, str]]:
    some = (group.scored or group.runs)[0]
    score, documents, size = some.score, some.corpus.get("documents", {}), some.corpus.get("bytes", {})
    kinds = (
        f"{run.tokenizer.get('kind')}, {whole(run.tokenizer.get('vocab_size'))} tokens"
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


def _ladder(group: Group) -> str:
    if not group.scored:
        return ""
    shades = _shades(group)
    bars = [
        charts.Bar(
            label=run.label,
            note=run.row.idea,
            value=run.cost,
            low=run.row.low,
            high=run.row.high,
            shade=shades[run.label],
        )
        for run in group.scored
    ]
    caption = (
        "A dot is what one byte of unseen text costs that rung, and further left is better; the bar through it "
        "is the 95% interval"
        + (", and the upright lines are what compressors pay for the same bytes." if group.marks else ".")
    )
    return _figure("The ladder", caption, [charts.draw_ladder(bars, group.marks, width) for width in charts.WIDTHS])


def _curves(group: Group) -> str:
    shades = _shades(group)
    learners = [run for run in group.runs if run.curve]
    if not learners:
        return ""
    curves = [
        charts.Curve(label=run.label, points=run.curve, level=run.row.bits_per_byte, shade=shades[run.label])
        for run in group.runs
        if run.curve or run in group.scored
    ]
    caption = (
        "Bits per byte of validation text after so many training tokens: lower is better, and a line that still "
        "falls at its end would gain from more time."
    )
    if len(curves) > len(learners):
        caption += (
            " A dashed line is a rung that has no such steps, at its score on the test text: "
            "other documents, so a rough guide only."
        )
    return _figure("Learning", caption, [charts.draw_curves(curves, width) for width in charts.WIDTHS])


def _figure(title: str, caption: str, drawings: list[str]) -> str:
    return f"<section><h2>{title}</h2><figure><figcaption>{caption}</figcaption>{''.join(drawings)}</figure></section>"


def _method(groups: list[Group]) -> str:
    found = [run for group in groups for run in group.runs]
    terms = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in DEFINITIONS.items())
    versions: dict[str, list[str]] = {}
    for run in found:
        for name, version in (run.record.get("versions") or {}).items():
            versions.setdefault(name, []).append(version)
    listed = " · ".join(f"{escape(name)} {_distinct(numbers)}" for name, numbers in versions.items())
    software = f"<dt>Versions</dt><dd>{listed}</dd>" if listed else ""
    recipes = "".join(map(_recipe, found))
    return (
        f'<section class="method"><h2>How it was measured</h2><dl>{terms}{software}</dl>'
        f'<h3>Recipes</h3><div class="recipes">{recipes}</div></section>'
    )


def _recipe(run: Run) -> str:
    lines = "\n".join(f"{key}: {_plain(value)}" for key, value in _flatten(run.record.get("recipe") or {}))
    folder = f" <span>{escape(run.row.name)}</span>" if run.label != run.row.name else ""
    page = escape(lines) or "no recipe was recorded"
    return f"<details><summary>{escape(run.label)}{folder}</summary><pre>{page}</pre></details>"


DEFINITIONS = {
    "Bits per byte": "The number of bits the model needs to name the text, −Σ log₂ p over all tokens, divided by the "
    "text’s UTF-8 bytes. It does not depend on how the text is cut into tokens, so it compares any two rungs, and "
    "either with a compressor.",
    "Word perplexity": "e to the power of the negative log-likelihood for each white-space separated word: as many "
    "equally likely words to choose from. It compares across tokenizers on the same text.",
    "Token perplexity": "The same for each token. It compares only where the tokenizer is the same.",
    "95% interval": "A bootstrap over documents: the test documents are drawn again, with replacement, 1,000 times. "
    "It says how far bits per byte would move on other documents of this kind. All rungs read the same documents "
    "and move together, so a difference can be real where two intervals overlap.",
    "What is scored": "Every held-out document, each token of it once, from a begin-of-text token that is not "
    "scored to its end-of-text token, which is. A word that the tokenizer does not know is charged for its spelling, "
    "byte by byte.",
}


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
    return f"{whole(documents)} document{'s' if documents > 1 else ''}, {whole(size)} bytes"


def _distinct(values: Iterable[Any]) -> str:
    return escape("; ".join(dict.fromkeys(str(value) for value in values if value is not None)))


def _shades(group: Group) -> dict[str, int]:
    """The depth of colour of each run, from the lowest rung to the highest."""
    last = max(len(group.runs) - 1, 1)
    return {run.label: round(i * (charts.SHADES - 1) / last) for i, run in enumerate(group.runs)}
