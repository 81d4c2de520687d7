"""Read runs for the report: in the order of the ladder, grouped by the text they were scored on."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rung import runs
from rung.evaluation.metrics import format_token_perplexity, format_word_perplexity
from rung.ladder import FOREIGN_IDEA, IDEAS

# The corpus, the bytes of its test text, and whether the ends of documents were scored.
GroupKey = tuple[str | None, int | None, bool]
UNFINISHED = "not finished"
UNSCORED = "no score: nothing was held out"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run as a row of the table.

    `failed` is the reason why a run has no scores, `doubt` the reason why its scores say nothing of
    its rung, `busyness` the share of the machine that it got; each is None where there is none.
    """

    name: str  # of the folder
    rung: str
    idea: str
    parameters: int | None
    seconds: float | None
    tokens_per_second: float | None
    token_perplexity: str  # formatted, as is the next
    word_perplexity: str
    bits_per_byte: float | None
    low: float | None
    high: float | None
    renormalized: bool  # the model's scores do not sum to 1, and were divided by their sum
    sample: str | None
    failed: str | None
    doubt: str | None = None
    busyness: str | None = None
    pairs: dict[str, Any] | None = None  # the accuracies on minimal pairs, as the record has them


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run with its row, its record, and its validation curve."""

    folder: Path
    label: str  # its rung where that is unique, or else its folder
    row: RunSummary
    record: dict[str, Any]
    curve: list[tuple[float, float]]  # training tokens, bits per byte

    @property
    def score(self) -> dict[str, Any]:
        """Return the score on the test split; empty where there is none."""
        return _section(_section(self.record, "scores"), "test")

    @property
    def cost(self) -> float:
        """Return the bits per byte of the test split; infinite where there is no score."""
        return math.inf if self.row.bits_per_byte is None else self.row.bits_per_byte

    @property
    def mark(self) -> str:
        """Return `*` for a run whose scores were renormalized, which a note below explains."""
        return "*" * self.row.renormalized

    @property
    def corpus(self) -> dict[str, Any]:
        """Return the record of the corpus; empty where the run failed before it was read."""
        return _section(self.record, "corpus")

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Return the record of the tokenizer; empty where it is not known."""
        return _section(self.record, "tokenizer")


@dataclass(frozen=True)
class ComparableRuns:
    """Runs on the same text, scored or not, in the order of the ladder."""

    runs: list[ReportedRun]

    @property
    def scored(self) -> list[ReportedRun]:
        """Return the runs with finite bits per byte."""
        return [run for run in self.runs if math.isfinite(run.cost)]

    @property
    def best(self) -> ReportedRun | None:
        """Return the run with the fewest bits per byte, of those without a doubt."""
        return min(
            (run for run in self.scored if not run.row.doubt),
            key=lambda run: run.cost,
            default=None,
        )

    @property
    def marks(self) -> dict[str, float]:
        """Return the compressors' bits per byte, from the first run that has most of them."""
        return max((_section(run.record, "marks") for run in self.runs), key=len, default={})

    @property
    def pairs(self) -> dict[str, Any] | None:
        """Return the accuracies of the first run with some; all are of the same minimal pairs."""
        return next((run.row.pairs for run in self.runs if run.row.pairs), None)

    @property
    def end_scored(self) -> bool:
        """Return whether the ends of documents were scored."""
        return all(run.score.get("end_scored", True) for run in self.scored)

    @property
    def same_tokens(self) -> bool:
        """Return whether all have the same tokenizer, so that token perplexities compare."""
        return len({run.tokenizer.get("fingerprint") for run in self.scored}) <= 1


def read_runs(folders: Iterable[Path]) -> list[ReportedRun]:
    """Read the runs in these folders, in the order of the ladder; a damaged one counts as failed.

    Raises `RunError` for a folder that is no run.
    """
    once = {folder.resolve(): folder for folder in folders}
    found = sorted(map(_read_run, once.values()), key=lambda run: _ladder_position(run.row.rung))
    doubts = runs.explain_doubtful_scores([run.record for run in found])
    return [
        replace(run, row=replace(run.row, doubt=doubt if run.score else None))
        for run, doubt in zip(found, doubts, strict=True)
    ]


def read_summaries(folders: Iterable[Path]) -> list[RunSummary]:
    """Return the row of each run, in the order of the ladder.

    Raises `RunError` for a folder that is no run.
    """
    return [run.row for run in _keep_common_pairs(read_runs(folders))]


def report_record(name: str, record: dict[str, Any]) -> ReportedRun:
    """Return a model that is no run as one, by a record that no folder holds."""
    row = replace(_summarize(name, record), idea=FOREIGN_IDEA)
    return ReportedRun(folder=Path(name), label=row.rung, row=row, record=record, curve=[])


def group_runs(found: list[ReportedRun]) -> list[ComparableRuns]:
    """Group the runs whose figures compare: the same corpus, as many test bytes, the ends scored.

    A run without a score goes with the runs on its corpus; one that failed before it had read a
    corpus goes with the others where there is only one group.
    """
    groups: dict[GroupKey, list[ReportedRun]] = {}
    for run in found:
        if run.score:
            # A run whose text is unknown compares with no other.
            text = run.corpus.get("fingerprint") or str(run.folder)
            key = text, run.score.get("bytes"), run.score.get("end_scored", True)
            groups.setdefault(key, []).append(run)
    for run in found:
        if not run.score:
            groups.setdefault(_find_group(run, list(groups)), []).append(run)
    return [
        ComparableRuns(_label_runs(_keep_common_pairs(sorted(members, key=found.index))))
        for members in groups.values()
    ]


def _keep_common_pairs(members: list[ReportedRun]) -> list[ReportedRun]:
    """Leave out accuracies on other minimal pairs than those that most runs were scored on."""
    prints = Counter(run.row.pairs.get("fingerprint") for run in members if run.row.pairs)
    common = prints.most_common(1)
    return [
        replace(run, row=replace(run.row, pairs=None))
        if run.row.pairs and run.row.pairs.get("fingerprint") != common[0][0]
        else run
        for run in members
    ]


def _read_run(folder: Path) -> ReportedRun:
    record = runs.read_record_or_failure(folder)
    # The metrics of a tuned run are those of its answers.
    lines = [] if "tune" in record else runs.read_metrics(folder)
    curve = [(line.get("tokens"), line.get("bits_per_byte")) for line in lines]
    row = _summarize(folder.resolve().name, record)
    return ReportedRun(
        folder=folder,
        label=row.rung,
        row=row,
        record=record,
        curve=[(x, y) for x, y in curve if x is not None and y is not None and math.isfinite(y)],
    )


def _summarize(name: str, record: dict[str, Any]) -> RunSummary:
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
        busyness=runs.describe_busy_machine(record),
        pairs=record.get("pairs"),
    )


def _section(record: dict[str, Any], key: str) -> dict[str, Any]:
    return record.get(key) or {}


def _ladder_position(rung: str) -> int:
    ladder = list(IDEAS)
    return ladder.index(rung) if rung in ladder else len(ladder)


def _find_group(run: ReportedRun, keys: list[GroupKey]) -> GroupKey:
    """Return the key of the group that a run without a score belongs to."""
    fingerprint = run.corpus.get("fingerprint")
    if fingerprint is None and len(keys) == 1:
        return keys[0]
    return next((key for key in keys if key[0] == fingerprint), (fingerprint, None, True))


def _label_runs(members: list[ReportedRun]) -> list[ReportedRun]:
    """Label the runs with the shortest unique names: rung, folder, or the folder's path."""
    for labels in (
        [run.row.rung for run in members],
        [run.row.name for run in members],
        ["/".join(run.folder.resolve().parts[-2:]) for run in members],
    ):
        if len(set(labels)) == len(labels):
            return [replace(run, label=label) for run, label in zip(members, labels, strict=True)]
    return [replace(run, label=str(run.folder)) for run in members]
