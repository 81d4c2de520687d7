"""Cards of the report: what each run wrote, and the surprisal of each token of a passage."""

import math
from collections.abc import Iterable
from html import escape

from rung.report.summaries import ComparableRuns, ReportedRun
from rung.report.table import format_count

REPLACEMENT = "\ufffd"  # what bytes that make no character decode to
DARKEST = 12.0  # bits; a token above has the same shade


def build_samples(group: ComparableRuns) -> str:
    """Build a card for each run that wrote a sample."""
    told = [run for run in group.runs if run.row.sample is not None]
    cards = "".join(_card(escape(run.label), _sample(run)) for run in told)
    caption = (
        "Every rung continues the words in bold. See how long each keeps to a word, a sentence, "
        "a subject."
    )
    if note := note_broken_characters(run.row.sample for run in told):
        caption += f" {note}."
    return _gallery(
        "The same prompt, continued",
        caption,
        cards,
    )


def note_broken_characters(samples: Iterable[str | None]) -> str:
    """Explain the replacement character where a sample has one; empty where none has."""
    if not any(REPLACEMENT in sample for sample in samples if sample):
        return ""
    return (
        f"{REPLACEMENT} stands for bytes that make no character: tokens are bytes, and a model "
        "that looks few of them back, as the bigram does, breaks characters of several"
    )


def _sample(run: ReportedRun) -> str:
    prompt, sample = str(run.record.get("prompt") or ""), run.row.sample or ""
    glue = " " if prompt and _loses_space(run) and not sample[:1].isspace() else ""
    return f"<b>{escape(prompt)}</b>{glue}{escape(sample)}"


def build_surprisal(group: ComparableRuns) -> str:
    """Build a card for each run that read the passage, its tokens shaded by their bits."""
    told = [run for run in group.runs if run.record.get("passage")]
    cards = "".join(_card(_heading(run), _passage(run)) for run in told)
    scale = "".join(
        f'<span class="t" style="--b:{bits}"></span>' for bits in range(int(DARKEST) + 1)
    )
    return _gallery(
        "Where each rung is surprised",
        "The same unseen passage for every rung. The stronger a token’s shade, the more bits it "
        "cost; point at a token to read them. ⏎ is a token of line breaks, the square is the "
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
    """Return the passage's tokens and their bits; JSON has null for infinitely many."""
    return [(text, math.inf if bits is None else bits) for text, bits in run.record["passage"]]


def _passage(run: ReportedRun) -> str:
    """Format the passage with each token shaded by its bits."""
    return "".join(_token(text, bits) for text, bits in _join_characters(_costs(run)))


def _join_characters(passage: list[tuple[str, float]]) -> Iterable[tuple[str, float]]:
    """Join the tokens of one character; the later ones have no text. The end stays alone."""
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
