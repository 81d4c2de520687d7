"""The report's table: a row for each run, the compressors below, and what has to be known to compare them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from rung.report.rows import UNFINISHED, Group, Row, Run

NONE = "–"
COMPRESSOR = "compressor, reading the test text alone"
MARKS = {"lzma after train": "compressor, after reading the training text"}


@dataclass(frozen=True)
class Column:
    """A figure of the table; `kind` is a class of the style sheet."""

    head: str
    show: Callable[[Row], str]
    kind: str = "figure"


COLUMNS = (
    Column("parameters", lambda row: whole(row.parameters)),
    Column("training<br>seconds", lambda row: _rounded(row.seconds, 1)),
    Column("tokens / s", lambda row: whole(row.tokens_per_second)),
    Column("token<br>perplexity", lambda row: perplexity(row.token_perplexity), "token"),
    Column("word<br>perplexity", lambda row: perplexity(row.word_perplexity)),
    Column("bits<br>per byte", lambda row: _rounded(row.bits_per_byte, 3), "key"),
    Column("95% interval", lambda row: _interval(row), "interval"),
)


def build_table(group: Group) -> str:
    """The table's section; runs without a score are listed with the reason."""
    heads = "".join(f'<th scope="col" class="{column.kind}">{column.head}</th>' for column in COLUMNS)
    rows = "".join(_table_row(run, run is group.best) for run in group.runs)
    foot = "".join(_mark_row(name, value) for name, value in group.marks.items())
    notes = "".join(f"<li>{note}</li>" for note in _notes(group))
    return (
        '<section><h2>The figures</h2><p class="caption">A row is a run, and all read the same test text; '
        "less is better, in perplexities as in bits per byte.</p>"
        '<div class="scroll" role="region" aria-label="The figures" tabindex="0">'
        f'<table{"" if group.same_tokens else " class=mixed"}><thead><tr><th scope="col">rung</th>'
        f'<th scope="col">idea</th>{heads}</tr></thead><tbody>{rows}</tbody><tfoot>{foot}</tfoot></table></div>'
        f'<ul class="notes">{notes}</ul></section>'
    )


def _table_row(run: Run, best: bool) -> str:
    row = run.row
    idea = row.idea if run.label == row.rung else f"{row.rung}: {row.idea}".removesuffix(": ")
    start = f'<th scope="row">{escape(run.label)}</th><td>{escape(idea)}</td>'
    if row.failed:
        why = row.failed if row.failed == UNFINISHED else f"failed: {row.failed}"
        return f'<tr class="failed">{start}<td colspan="{len(COLUMNS)}">{escape(why)}</td></tr>'
    cells = "".join(f'<td class="{column.kind}">{column.show(row)}</td>' for column in COLUMNS)
    return f"<tr{' class=best' if best else ''}>{start}{cells}</tr>"


def _mark_row(name: str, value: float) -> str:
    """A compressor, with its figure in the column of bits per byte."""
    before = [column.kind for column in COLUMNS].index("key")
    return (
        f'<tr><th scope="row">{escape(name)}</th><td colspan="{1 + before}">{MARKS.get(name, COMPRESSOR)}</td>'
        f'<td class="key">{_rounded(value, 3)}</td><td colspan="{len(COLUMNS) - before - 1}"></td></tr>'
    )


def _notes(group: Group) -> Iterable[str]:
    """What a reader has to know before comparing two figures of the table."""
    if not group.same_tokens:
        kinds = "; ".join(
            f"{names(labels)}: {escape(kind)}" for kind, labels in _labels_by(group.scored, _tokenizer_name).items()
        )
        yield f"† Token perplexities compare only between runs with the same tokenizer ({kinds})."
    for (window, stride), labels in _labels_by(group.scored, _window).items():
        if window is None:
            yield f"{names(labels)}: a document is read in one go, from its beginning to its end."
        else:
            yield (
                f"{names(labels)}: a long document is read through a window of {whole(window)} tokens "
                f"that moves by {whole(stride)}; each token is scored once."
            )
    for what, labels in _labels_by(group.scored, _losses).items():
        if what:
            yield f"{names(labels)}: the tokenizer loses {escape(what)}, and the score does not charge for it."
    for run in group.scored:
        if unknown := run.score.get("unknown_words"):
            spelled = run.score.get("unknown_nats", 0) / math.log(2)
            yield f"{names([run.label])}: {whole(unknown)} unknown words were spelled out, for {whole(spelled)} bits."


def whole(number: float | None) -> str:
    """A count, with separators."""
    return NONE if number is None else f"{number:,.0f}"


def perplexity(number: float | None) -> str:
    """No more digits than mean something, and powers of ten where it is beyond imagining."""
    if number is None:
        return NONE
    if not math.isfinite(number) or number < 1e7:
        return f"{number:,.{1 if number < 1000 else 0}f}"
    digits, power = f"{number:.1e}".split("e")
    return f"{digits}\u202f×\u202f10<sup>{int(power)}</sup>"


def _rounded(number: float | None, decimals: int) -> str:
    return NONE if number is None else f"{number:,.{decimals}f}"


def _interval(row: Row) -> str:
    return NONE if row.low is None or row.high is None else f"{row.low:.3f}–{row.high:.3f}"


def names(labels: Iterable[str]) -> str:
    """The names of runs, in a row."""
    return f'<span class="names">{escape(", ".join(labels))}</span>'


def _labels_by(found: list[Run], key: Callable[[Run], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for run in found:
        groups.setdefault(key(run), []).append(run.label)
    return groups


def _window(run: Run) -> tuple[int | None, int | None]:
    return run.score.get("window"), run.score.get("stride")


def _losses(run: Run) -> str:
    """What goes uncharged: unknown words are spelled out, so they are not in it."""
    return ", ".join(what for what in run.score.get("lost") or () if what != "unknown words")


def _tokenizer_name(run: Run) -> str:
    spec = run.tokenizer
    return f"{spec.get('kind')} with {whole(spec.get('vocab_size'))} tokens, fingerprint {spec.get('fingerprint')}"
