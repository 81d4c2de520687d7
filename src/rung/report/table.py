"""The table of the report: a row for each run, the marks of the text, and notes below it."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rung.evaluation.metrics import (
    LZMA_AFTER_TRAIN,
    NO_FIGURE,
    RENORMALIZED,
    SOURCE_MARK,
    describe_pairs,
    explain_reading,
)
from rung.report.summaries import UNFINISHED, UNSCORED, ComparableRuns, ReportedRun, RunSummary

# The features lost by a tokenizer that the score charges for.
CHARGED = ("unknown words", "separators", "dropped text")
DOUBT_SIGN = "‡"  # marks a run whose scores say nothing of its rung
COMPRESSOR = "compressor, reading the test text alone"
MARK_NOTES = {
    LZMA_AFTER_TRAIN: "compressor, after reading the training text",
    SOURCE_MARK: "the true probability of the text, which no model can be expected to beat",
}


@dataclass(frozen=True)
class TableColumn:
    """A figure of the table; `kind` is a class of the style sheet."""

    head: str
    show: Callable[[RunSummary], str]
    kind: str = "figure"


COLUMNS = (
    TableColumn("parameters", lambda row: format_count(row.parameters)),
    TableColumn("training<br>seconds", lambda row: _rounded(row.seconds, 1)),
    TableColumn("tokens / s", lambda row: format_count(row.tokens_per_second)),
    TableColumn("token<br>perplexity", lambda row: _set_powers(row.token_perplexity), "token"),
    TableColumn("word<br>perplexity", lambda row: _set_powers(row.word_perplexity)),
    TableColumn(
        "bits<br>per byte",
        lambda row: _rounded(row.bits_per_byte, 3) + "*" * row.renormalized,
        "key",
    ),
    TableColumn("95% interval", lambda row: _interval(row), "interval"),
)


PAIRS_COLUMN = TableColumn("minimal<br>pairs", lambda row: _accuracy(row))


def build_table(group: ComparableRuns) -> str:
    """Build the table's section; runs without a score are listed with the reason."""
    columns = (*COLUMNS, PAIRS_COLUMN) if group.pairs else COLUMNS
    ends = "" if group.end_scored else ",<br>ends not scored"
    heads = "".join(
        f'<th scope="col" class="{column.kind}">{column.head}{ends * (column.kind == "key")}</th>'
        for column in columns
    )
    rows = "".join(_table_row(run, run is group.best, columns) for run in group.runs)
    foot = "".join(_mark_row(name, value, columns) for name, value in group.marks.items())
    notes = "".join(f"<li>{note}</li>" for note in _notes(group))
    return (
        '<section><h2>The figures</h2><p class="caption">Each row is a run, and all were scored on '
        "the same test text. Lower is better, for perplexities as for bits per byte.</p>"
        '<div class="scroll" role="region" aria-label="The figures" tabindex="0">'
        f'<table{"" if group.same_tokens else " class=mixed"}><thead><tr><th scope="col">rung</th>'
        f'<th scope="col">idea</th>{heads}</tr></thead><tbody>{rows}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
        f'<ul class="notes">{notes}</ul></section>'
    )


def _table_row(run: ReportedRun, best: bool, columns: Sequence[TableColumn]) -> str:
    row = run.row
    idea = row.idea if run.label == row.rung else f"{row.rung}: {row.idea}".removesuffix(": ")
    mark = f" {DOUBT_SIGN}" if row.doubt else ""
    start = f'<th scope="row">{escape(run.label)}{mark}</th><td>{escape(idea)}</td>'
    if row.failed:
        why = row.failed if row.failed in (UNFINISHED, UNSCORED) else f"failed: {row.failed}"
        return f'<tr class="failed">{start}<td colspan="{len(columns)}">{escape(why)}</td></tr>'
    cells = "".join(make_cell(column.kind, column.head, column.show(row)) for column in columns)
    return f"<tr{' class=best' if best else ''}>{start}{cells}</tr>"


def make_cell(kind: str, head: str, figure: str) -> str:
    """Build a cell with its column's name, which a phone shows beside the figure."""
    return f'<td class="{kind}" data-head="{head.replace("<br>", " ")}">{figure}</td>'


def _mark_row(name: str, value: float, columns: Sequence[TableColumn]) -> str:
    """Build the row of a mark, its figure in the column of bits per byte."""
    before = [column.kind for column in columns].index("key")
    return (
        f'<tr><th scope="row">{escape(name)}</th><td '
        f'colspan="{1 + before}">{MARK_NOTES.get(name, COMPRESSOR)}</td>'
        f"{make_cell('key', 'bits per byte', _rounded(value, 3))}<td "
        f'colspan="{len(columns) - before - 1}"></td></tr>'
    )


def _notes(group: ComparableRuns) -> Iterable[str]:
    """Yield the notes that a reader needs before comparing two figures."""
    if not group.same_tokens:
        kinds = "; ".join(
            f"{format_names(labels)}: {escape(kind)}"
            for kind, labels in _labels_by(group.scored, _tokenizer_name).items()
        )
        yield f"† Token perplexities compare only between runs with the same tokenizer ({kinds})."
    for what, labels in _labels_by(group.scored, lambda run: run.row.doubt).items():
        if what:
            yield (
                f"{DOUBT_SIGN} {format_names(labels)}: {what}. The figures say nothing of the "
                f"rung: give it more minutes."
            )
    for what, labels in _labels_by(group.scored, lambda run: run.row.busyness).items():
        if what:
            yield f"{format_names(labels)}: {what}."
    if group.pairs:
        yield from _pairs_notes(group)
    yield from _reading_notes(group)
    for run in group.scored:
        for what in explain_reading(run.score).values():
            yield f"{format_names([run.label])}: {what}."
    if renormalized := [run.label for run in group.scored if run.row.renormalized]:
        yield f"* {format_names(renormalized)}: no distribution; {RENORMALIZED}."
    left_out = next((why for run in group.runs if (why := run.record.get("marks_left_out"))), None)
    if left_out and LZMA_AFTER_TRAIN not in group.marks:
        yield f"{escape(left_out)}."
    yield from _spelling_notes(group)


def _pairs_notes(group: ComparableRuns) -> Iterable[str]:
    """Yield what the accuracies on minimal pairs are, and who has none or had words to spell."""
    yield f"{escape(describe_pairs(group.pairs or {}))}."
    for run in group.scored:
        if not run.row.pairs:
            yield f"{format_names([run.label])}: not scored on these minimal pairs."
        elif spelled := run.row.pairs.get("spelled"):
            yield (
                f"{format_names([run.label])}: words of {format_count(spelled)} minimal pairs were "
                "spelled out."
            )


def _reading_notes(group: ComparableRuns) -> Iterable[str]:
    """Yield how each run read long documents, and what its tokenizer loses."""
    for (window, stride), labels in _labels_by(group.scored, _window).items():
        if window is None:
            yield (
                f"{format_names(labels)}: a document is read in one go, from its beginning to its "
                "end."
            )
        else:
            yield (
                f"{format_names(labels)}: a long document is read through a window of "
                f"{format_count(window)} tokens that moves by {format_count(stride)}; each token "
                "is scored once."
            )
    for what, labels in _labels_by(group.scored, _losses).items():
        if what:
            yield (
                f"{format_names(labels)}: the tokenizer loses {escape(what)}, and the score does "
                f"not charge for it."
            )


def _spelling_notes(group: ComparableRuns) -> Iterable[str]:
    """Yield how many unknown words and dropped bytes each run had to spell."""
    for run in group.scored:
        if unknown := run.score.get("unknown_words"):
            spelled = run.score.get("unknown_nats", 0) / math.log(2)
            yield (
                f"{format_names([run.label])}: {format_count(unknown)} unknown words were spelled "
                f"out, for {format_count(spelled)} bits."
            )
        if dropped := run.score.get("dropped_bytes"):
            spelled = run.score["dropped_nats"] / math.log(2)
            yield (
                f"{format_names([run.label])}: the tokenizer dropped {format_count(dropped)} "
                f"bytes of the text, which were spelled out, for {format_count(spelled)} bits."
            )


def format_count(number: float | None) -> str:
    """Format a count with separators."""
    return NO_FIGURE if number is None else f"{number:,.0f}"


def _set_powers(figure: str) -> str:
    """Format a figure as HTML with the power of ten raised."""
    return re.sub(r"×10\^(\d+)", "\u202f×\u202f10<sup>\\1</sup>", figure)


def _rounded(number: float | None, decimals: int) -> str:
    return NO_FIGURE if number is None else f"{number:,.{decimals}f}"


def _accuracy(row: RunSummary) -> str:
    return f"{row.pairs['accuracy']:.1%}" if row.pairs else NO_FIGURE


def _interval(row: RunSummary) -> str:
    return NO_FIGURE if row.low is None or row.high is None else f"{row.low:.3f}–{row.high:.3f}"


def format_names(labels: Iterable[str]) -> str:
    """Format the names of runs as HTML."""
    return f'<span class="names">{escape(", ".join(labels))}</span>'


def _labels_by(found: list[ReportedRun], key: Callable[[ReportedRun], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for run in found:
        groups.setdefault(key(run), []).append(run.label)
    return groups


def _window(run: ReportedRun) -> tuple[int | None, int | None]:
    return run.score.get("window"), run.score.get("stride")


def _losses(run: ReportedRun) -> str:
    """Name what the tokenizer loses and the score does not charge for."""
    return ", ".join(what for what in run.score.get("lost") or () if what not in CHARGED)


def _tokenizer_name(run: ReportedRun) -> str:
    if not (spec := run.tokenizer):
        return "not recorded"
    return (
        f"{spec.get('kind')} with {format_count(spec.get('vocab_size'))} tokens, fingerprint "
        f"{spec.get('fingerprint')}"
    )
