"""Runs as rows: read, put in the order of the ladder, grouped by the text of their scores, set in a
table.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from rung import runs
from rung.evaluation.metrics import (
    LZMA_AFTER_TRAIN,
    NO_FIGURE,
    RENORMALIZED,
    format_token_perplexity,
    format_word_perplexity,
)

# The ladder, and what each rung adds to the one below; importing the models would import torch with
# them.
IDEAS = {
    "bigram": "count pairs",
    "ngram": "count longer, back off well",
    "infini-gram": "count any length",
    "rnn": "remember",
    "rnn-attention": "look back",
    "gpt2": "drop recurrence",
    "llama3": "modernise",
    "swaps": "modernise by parts",
}
CHARGED = (
    "unknown words",
    "separators",
    "dropped text",
)  # of what a tokenizer loses: it is spelled out
UNFINISHED = "not finished"
UNSCORED = "no score: nothing was held out"

DOUBT_SIGN = "‡"  # behind the name of a run whose scores say nothing of its rung
COMPRESSOR = "compressor, reading the test text alone"
MARKS = {LZMA_AFTER_TRAIN: "compressor, after reading the training text"}


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run as the table shows it; `failed` says why a run has no scores, and is None where it
    has.

    `doubt` says why its scores say nothing of its rung, `busyness` what it got of a busy machine.
    """

    name: str  # of the folder
    rung: str
    idea: str
    parameters: int | None
    seconds: float | None
    tokens_per_second: float | None
    token_perplexity: str  # perplexities as they are written
    word_perplexity: str
    bits_per_byte: float | None
    low: float | None
    high: float | None
    renormalized: bool  # its scores are no distribution, and were divided by their sum
    sample: str | None
    failed: str | None
    doubt: str | None = None
    busyness: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """One run in full: its row, its record, and what it cost on validation text as it learned."""

    folder: Path
    label: str  # what the page calls it: its rung where that is enough
    row: RunSummary
    record: dict[str, Any]
    curve: list[tuple[float, float]]  # training tokens, bits per byte

    @property
    def score(self) -> dict[str, Any]:
        """The score on the test split; empty where there is none."""
        return _section(_section(self.record, "scores"), "test")

    @property
    def cost(self) -> float:
        """Bits per byte of the test split; infinite where there is no score."""
        return math.inf if self.row.bits_per_byte is None else self.row.bits_per_byte

    @property
    def mark(self) -> str:
        """`*` behind a cost where the scores are no distribution, as a line below the table
        says.
        """
        return "*" * self.row.renormalized

    @property
    def corpus(self) -> dict[str, Any]:
        """The corpus's name, fingerprint and sizes; empty where the run failed before it was
        read.
        """
        return _section(self.record, "corpus")

    @property
    def tokenizer(self) -> dict[str, Any]:
        """The tokenizer's kind, fingerprint, size and losses; empty where it is not known."""
        return _section(self.record, "tokenizer")


@dataclass(frozen=True)
class ComparableRuns:
    """Runs scored on the same text, with those meant for it that have no score, in the order of the
    ladder.
    """

    runs: list[ReportedRun]

    @property
    def scored(self) -> list[ReportedRun]:
        """The runs whose bits per byte can be drawn and compared."""
        return [run for run in self.runs if math.isfinite(run.cost)]

    @property
    def best(self) -> ReportedRun | None:
        """The run that needs the fewest bits, of those whose scores are not in doubt."""
        return min(
            (run for run in self.scored if not run.row.doubt),
            key=lambda run: run.cost,
            default=None,
        )

    @property
    def marks(self) -> dict[str, float]:
        """Bits per byte of the compressors, from the first run that has most of them."""
        return max((_section(run.record, "marks") for run in self.runs), key=len, default={})

    @property
    def same_tokens(self) -> bool:
        """Whether all cut the text into the same tokens, so that token perplexities compare."""
        return len({run.tokenizer.get("fingerprint") for run in self.scored}) <= 1


def read_runs(folders: Iterable[Path]) -> list[ReportedRun]:
    """The runs in these folders, in the order of the ladder; a damaged one counts as failed.

    Raises `RunError` for a folder that is no run.
    """
    once = {folder.resolve(): folder for folder in folders}
    found = sorted(map(_read_run, once.values()), key=lambda run: _place(run.row.rung))
    doubts = runs.find_doubts([run.record for run in found])
    return [
        replace(run, row=replace(run.row, doubt=doubt if run.score else None))
        for run, doubt in zip(found, doubts, strict=True)
    ]


def group_runs(found: list[ReportedRun]) -> list[ComparableRuns]:
    """Groups whose figures may stand side by side: the same corpus, the same number of test bytes.

    A run without a score goes with the runs on its corpus; one that failed before it had read a
    corpus goes with the others where there is only one group.
    """
    groups: dict[tuple[str | None, int | None], list[ReportedRun]] = {}
    for run in found:
        if run.score:
            text = run.corpus.get("fingerprint") or str(run.folder)  # unknown text is like no other
            groups.setdefault((text, run.score.get("bytes")), []).append(run)
    for run in found:
        if not run.score:
            groups.setdefault(_home(run, list(groups)), []).append(run)
    return [ComparableRuns(_label(sorted(members, key=found.index))) for members in groups.values()]


def _read_run(folder: Path) -> ReportedRun:
    record = runs.read_any_record(folder)
    lines = (
        [] if "tune" in record else runs.read_metrics(folder)
    )  # of a tuned run they are about its answers
    curve = [(line.get("tokens"), line.get("bits_per_byte")) for line in lines]
    row = _make_row(folder.resolve().name, record)
    return ReportedRun(
        folder=folder,
        label=row.rung,
        row=row,
        record=record,
        curve=[(x, y) for x, y in curve if x is not None and y is not None and math.isfinite(y)],
    )


def _make_row(name: str, record: dict[str, Any]) -> RunSummary:
    score = _section(_section(record, "scores"), "test")
    training = _section(record, "training")
    return RunSummary(
        name=name,
        rung=str(record["rung"]),
        idea=IDEAS.get(record["rung"], ""),
        parameters=record.get("parameters"),
        seconds=training.get("seconds"),
        tokens_per_second=training.get("tokens_per_second"),
        token_perplexity=format_token_perplexity(score),
        word_perplexity=format_word_perplexity(score),
        bits_per_byte=score.get("bits_per_byte"),
        low=score.get("low"),
        high=score.get("high"),
        renormalized=bool(score.get("renormalized")),
        sample=record.get("sample"),
        failed=None
        if score
        else str(record.get("failed") or (UNSCORED if "scores" in record else UNFINISHED)),
        busyness=runs.find_busyness(record),
    )


def _section(record: dict[str, Any], key: str) -> dict[str, Any]:
    return record.get(key) or {}


def _place(rung: str) -> int:
    ladder = list(IDEAS)
    return ladder.index(rung) if rung in ladder else len(ladder)


def _home(
    run: ReportedRun, keys: list[tuple[str | None, int | None]]
) -> tuple[str | None, int | None]:
    """The key of the group that a run without a score belongs to."""
    fingerprint = run.corpus.get("fingerprint")
    if fingerprint is None and len(keys) == 1:
        return keys[0]
    return next((key for key in keys if key[0] == fingerprint), (fingerprint, None))


def _label(members: list[ReportedRun]) -> list[ReportedRun]:
    """The runs with the shortest names that tell them apart: rung, folder, or the folder's path."""
    for labels in (
        [run.row.rung for run in members],
        [run.row.name for run in members],
        ["/".join(run.folder.resolve().parts[-2:]) for run in members],
    ):
        if len(set(labels)) == len(labels):
            return [replace(run, label=label) for run, label in zip(members, labels, strict=True)]
    return [replace(run, label=str(run.folder)) for run in members]


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


def build_table(group: ComparableRuns) -> str:
    """The table's section; runs without a score are listed with the reason."""
    heads = "".join(
        f'<th scope="col" class="{column.kind}">{column.head}</th>' for column in COLUMNS
    )
    rows = "".join(_table_row(run, run is group.best) for run in group.runs)
    foot = "".join(_mark_row(name, value) for name, value in group.marks.items())
    notes = "".join(f"<li>{note}</li>" for note in _notes(group))
    return (
        '<section><h2>The figures</h2><p class="caption">A row is a run, and all read the same '
        "test text; "
        "less is better, in perplexities as in bits per byte.</p>"
        '<div class="scroll" role="region" aria-label="The figures" tabindex="0">'
        f'<table{"" if group.same_tokens else " class=mixed"}><thead><tr><th scope="col">rung</th>'
        f'<th scope="col">idea</th>{heads}</tr></thead><tbody>{rows}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
        f'<ul class="notes">{notes}</ul></section>'
    )


def _table_row(run: ReportedRun, best: bool) -> str:
    row = run.row
    idea = row.idea if run.label == row.rung else f"{row.rung}: {row.idea}".removesuffix(": ")
    mark = f" {DOUBT_SIGN}" if row.doubt else ""
    start = f'<th scope="row">{escape(run.label)}{mark}</th><td>{escape(idea)}</td>'
    if row.failed:
        why = row.failed if row.failed in (UNFINISHED, UNSCORED) else f"failed: {row.failed}"
        return f'<tr class="failed">{start}<td colspan="{len(COLUMNS)}">{escape(why)}</td></tr>'
    cells = "".join(make_cell(column.kind, column.head, column.show(row)) for column in COLUMNS)
    return f"<tr{' class=best' if best else ''}>{start}{cells}</tr>"


def make_cell(kind: str, head: str, figure: str) -> str:
    """A cell that knows its column's name: on a phone each row is a block, and there are no heads
    above it.
    """
    return f'<td class="{kind}" data-head="{head.replace("<br>", " ")}">{figure}</td>'


def _mark_row(name: str, value: float) -> str:
    """A compressor, with its figure in the column of bits per byte."""
    before = [column.kind for column in COLUMNS].index("key")
    return (
        f'<tr><th scope="row">{escape(name)}</th><td '
        f'colspan="{1 + before}">{MARKS.get(name, COMPRESSOR)}</td>'
        f"{make_cell('key', 'bits per byte', _rounded(value, 3))}<td "
        f'colspan="{len(COLUMNS) - before - 1}"></td></tr>'
    )


def _notes(group: ComparableRuns) -> Iterable[str]:
    """What a reader has to know before comparing two figures of the table."""
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
    for (window, stride), labels in _labels_by(group.scored, _window).items():
        if window is None:
            yield (
                f"{format_names(labels)}: a document is read in one go, from its beginning to its "
                f"end."
            )
        else:
            yield (
                f"{format_names(labels)}: a long document is read through a window of "
                f"{format_count(window)} tokens that moves by {format_count(stride)}; each token "
                f"is scored once."
            )
    for what, labels in _labels_by(group.scored, _losses).items():
        if what:
            yield (
                f"{format_names(labels)}: the tokenizer loses {escape(what)}, and the score does "
                f"not charge for it."
            )
    if renormalized := [run.label for run in group.scored if run.row.renormalized]:
        yield f"* {format_names(renormalized)}: no distribution; {RENORMALIZED}."
    left_out = next((why for run in group.runs if (why := run.record.get("marks_left_out"))), None)
    if left_out and LZMA_AFTER_TRAIN not in group.marks:
        yield f"{escape(left_out)}."
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
    """A count, with separators."""
    return NO_FIGURE if number is None else f"{number:,.0f}"


def _set_powers(figure: str) -> str:
    """A figure as HTML, the power of ten raised."""
    return re.sub(r"×10\^(\d+)", "\u202f×\u202f10<sup>\\1</sup>", figure)


def _rounded(number: float | None, decimals: int) -> str:
    return NO_FIGURE if number is None else f"{number:,.{decimals}f}"


def _interval(row: RunSummary) -> str:
    return NO_FIGURE if row.low is None or row.high is None else f"{row.low:.3f}–{row.high:.3f}"


def format_names(labels: Iterable[str]) -> str:
    """The names of runs, in a row."""
    return f'<span class="names">{escape(", ".join(labels))}</span>'


def _labels_by(found: list[ReportedRun], key: Callable[[ReportedRun], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for run in found:
        groups.setdefault(key(run), []).append(run.label)
    return groups


def _window(run: ReportedRun) -> tuple[int | None, int | None]:
    return run.score.get("window"), run.score.get("stride")


def _losses(run: ReportedRun) -> str:
    """What goes uncharged: what is spelled out is not in it."""
    return ", ".join(what for what in run.score.get("lost") or () if what not in CHARGED)


def _tokenizer_name(run: ReportedRun) -> str:
    if not (spec := run.tokenizer):
        return "not recorded"
    return (
        f"{spec.get('kind')} with {format_count(spec.get('vocab_size'))} tokens, fingerprint "
        f"{spec.get('fingerprint')}"
    )
