"""Tables of runs: a climb, its swaps, a tuned run, a resumed one, and those below a folder."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from rung import runs
from rung.cli.output import escape_controls
from rung.cli.score_tables import count_documents, format_bits
from rung.cli.tables import FittedTable, format_whole
from rung.evaluation.metrics import (
    LZMA_AFTER_TRAIN,
    NO_FIGURE,
    RENORMALIZED,
    describe_pairs,
    format_accuracy,
)

if TYPE_CHECKING:
    from rung.report.summaries import RunSummary
    from rung.report.swaps import SeedMean, SwapResult
    from rung.workflows.verify_resume import Verdict

SHOWN_LOSSES = 8  # lines of losses that two runs are compared by


def climb_table(rows: Sequence["RunSummary"], folders: Iterable[Path]) -> FittedTable:
    """The ladder with a line for each rung, the compressors' marks, and notes below the table."""
    from rung.report.samples import note_broken_characters

    records = [
        runs.read_record_or_failure(folder) for folder in folders if (folder / runs.RECORD).exists()
    ]
    gives_way = ("a sample", "word ppl", "tokens/s", "seconds", "token ppl", "parameters")
    table = FittedTable(_title(records), gives_way, title_style="bold")
    table.add_column("rung", no_wrap=True)
    table.add_figures("parameters", "seconds", "tokens/s", "token ppl", "word ppl", "bits per byte")
    pairs = next((row.pairs for row in rows if row.pairs), None)
    if pairs:
        table.add_figures("minimal pairs")
    table.add_column("a sample", no_wrap=True, max_width=48)
    known = (row.bits_per_byte for row in rows if row.bits_per_byte is not None and not row.doubt)
    best = min(known, default=None)
    for row in rows:
        _add_rung(table, row, is_best=row.bits_per_byte == best, has_pairs=pairs is not None)
    marks: dict[str, float] = max((r.get("marks") or {} for r in records), key=len, default={})
    if marks:
        table.add_section()
    for name, bits in marks.items():
        table.add_cells(
            Text(name, style="dim"), *[""] * 5, Text(f"{bits:.3f}             ", style="dim")
        )
    table.captions["a sample"] = note_broken_characters(row.sample for row in rows)
    notes = [describe_pairs(pairs)] if pairs else []
    notes += _list_notes(rows)
    left_out = next((r["marks_left_out"] for r in records if "marks_left_out" in r), "")
    notes += [left_out] if left_out and LZMA_AFTER_TRAIN not in marks else []
    table.caption = Text(escape_controls("\n".join(notes))) if notes else None
    return table


def _add_rung(
    table: FittedTable, row: "RunSummary", *, is_best: bool, has_pairs: bool = False
) -> None:
    if row.failed:
        state = row.failed if row.failed == "not finished" else "failed"
        table.add_cells(row.rung, "", "", "", "", "", Text(state, style="red"))
        return
    accuracy = format_accuracy(row.pairs) if row.pairs else NO_FIGURE
    table.add_cells(
        Text(f"{row.rung} ‡", style="yellow") if row.doubt else row.rung,
        format_whole(row.parameters),
        _decimal(row.seconds, 1),
        _short(row.tokens_per_second),
        row.token_perplexity,
        row.word_perplexity,
        Text(
            _interval(row.bits_per_byte, row.low, row.high) + "*" * row.renormalized,
            style="bold green" if is_best else "",
        ),
        *([accuracy] if has_pairs else []),
        " ".join((row.sample or "").split()),
    )


def _list_notes(rows: Sequence["RunSummary"]) -> list[str]:
    """The lines below a ladder: why a rung failed, and what to know of a rung's figures."""
    failed = [row for row in rows if row.failed not in (None, "not finished")]
    return [
        *(f"{row.rung} failed: {row.failed}" for row in failed),
        *(f"* {row.rung}: no distribution; {RENORMALIZED}" for row in rows if row.renormalized),
        *(f"‡ {row.rung}: {row.doubt}" for row in rows if row.doubt),
        *(f"{row.rung}: {row.busyness}" for row in rows if row.busyness),
    ]


def swaps_table(rows: Sequence["SwapResult"], folders: Iterable[Path]) -> FittedTable:
    """A line for each model between two rungs, with its difference from the first."""
    from rung.report.swaps import sum_of_parts

    records = [record for record in map(runs.read_record_or_failure, folders) if "scores" in record]
    steps, tokens = (records[0]["training"][key] for key in ("steps", "tokens"))
    seeds = ", ".join(dict.fromkeys(str(record["seed"]) for record in records))
    title = (
        f"{_title(records)};\n{steps:,} steps of {tokens // steps:,} tokens; 95% intervals over "
        f"the seeds {seeds}"
    )
    table = FittedTable(
        title, ("seconds", "parameters", "swap", "bits per byte"), title_style="bold"
    )
    table.caption = Text(sum_of_parts(list(rows)))
    for name in ("model", "swap"):
        table.add_column(name, no_wrap=True)
    table.add_figures("parameters", "seconds", "bits per byte", "difference")
    for row in rows:
        table.add_cells(
            row.name,
            row.idea,
            format_whole(row.parameters),
            _decimal(row.seconds, 1),
            _estimate(row.bits, ".3f"),
            Text(_estimate(row.difference, "+.3f"), style="bold" if row.is_clear else ""),
        )
    return table


def resume_table(verdict: "Verdict") -> FittedTable:
    """A run beside the same run killed and resumed: their losses, and whether all else is equal."""
    found = verdict.as_dict()
    fell = ", ".join(f"{count} while {phase}" for phase, count in found["fell"].items() if count)
    title = (
        f"{found['rung']} on {found['corpus']}, {found['steps']:,} steps\nkilled "
        f"{found['kills']:,} times: {fell}"
    )
    table = FittedTable(title, title_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("uninterrupted", "killed and resumed"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", no_wrap=True)
    losses = verdict.losses()
    shown = [row for row in losses if row[1] != row[2]][:SHOWN_LOSSES]
    shown = shown or [
        losses[(len(losses) - 1) * n // (SHOWN_LOSSES - 1)] for n in range(SHOWN_LOSSES) if losses
    ]
    for step, left, right in dict.fromkeys(shown):
        style, mark = ("", "=") if left == right else ("red", "≠")
        table.add_cells(
            f"loss at step {step}",
            repr(left),
            Text("none" if right is None else repr(right), style=style),
            mark,
        )
    table.add_section()
    count, weights = f"{len(verdict.whole.metrics)} lines", verdict.whole.weights[:16]
    counts = {"metrics": count, "samples": "", "scores": "", "weights": weights}
    for name, count in counts.items():
        differs = name in verdict.differences or not verdict.resumed
        table.add_cells(
            name,
            count,
            Text("differ", style="red") if differs else Text("the same", style="green"),
            "",
        )
    if verdict.failure:
        table.add_cells("failed", "", Text(escape_controls(verdict.failure), style="red"), "")
    return table


def runs_table(found: Iterable[tuple[Path, Mapping[str, Any]]]) -> FittedTable:
    """A line for each run. Runs on one text stand together, for only their figures compare."""
    table = FittedTable(gives_way=("corpus", "rung"))
    table.add_column("run", overflow="fold")
    table.add_column("rung", no_wrap=True)
    table.add_column("corpus", no_wrap=True, max_width=30)
    table.add_figures("bits per byte")
    texts: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    for folder, record in found:
        texts.setdefault(record.get("corpus", {}).get("fingerprint", ""), []).append(
            (folder, record)
        )
    for alike in texts.values():
        _add_runs(table, alike)
        table.add_section()
    return table


def _add_runs(table: FittedTable, alike: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    for folder, record in alike:
        score, failed = record.get("scores", {}).get("test"), record.get("failed")
        state = "imported" if "imported" in record else "failed" if failed else "not finished"
        name = f"{folder}\n  {failed}" if failed and not score else str(folder)
        cost = score.get("bits_per_byte") if score else None
        bits = format_bits(cost, ".3f") + "*" * bool(score.get("renormalized")) if score else state
        if score and score.get("renormalized"):
            table.captions["bits per byte"] = f"* no distribution; {RENORMALIZED}"
        doubted = " ‡" if score and runs.explain_doubtful_score(dict(record)) else ""
        if doubted:
            table.caption = Text("‡ too few training steps to have learned anything")
        table.add_cells(
            name, record["rung"] + doubted, record.get("corpus", {}).get("name", ""), bits + doubted
        )


def summarize_run(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The facts about a run that `rung runs --json` prints."""
    score = record.get("scores", {}).get("test") or {}
    return {
        "folder": str(folder),
        "rung": record["rung"],
        "corpus": record.get("corpus", {}).get("name"),
        "parameters": record.get("parameters"),
        "seconds": record.get("training", {}).get("seconds"),
        "bits_per_byte": score.get("bits_per_byte"),
        "low": score.get("low"),
        "high": score.get("high"),
        "renormalized": score.get("renormalized", False),
        "doubt": runs.explain_doubtful_score(dict(record)) if score else None,
        "finished": bool(score),
        "failed": record.get("failed"),
    }


def tuning_table(record: Mapping[str, Any]) -> FittedTable:
    """What tuning changed: the answers to held-out questions, and the score on the base's text."""
    tuned = record["tune"]
    before, after, lookup = tuned["before"], tuned["after"], tuned.get("lookup", {})
    table = FittedTable(f"{record['rung']}, tuned on {tuned['data']}")
    table.add_column("", overflow="fold")
    table.add_figures(
        "before", "after", *(f"by {kind}" for kind in next(iter(lookup.values()), {}))
    )
    for name, answers in after.get("answers", {}).items():
        sides = [before["answers"][name], answers, *lookup[name].values()]
        for key, what in (
            ("f1", "token F1"),
            ("exact", "exact"),
            ("token_perplexity", "token perplexity"),
        ):
            shown = [f"{side[key]:.3f}" if key in side else "" for side in sides]
            table.add_cells(f"{name}: {what} of {answers['questions']} answers", *shown)
    others = {"preferred": f"chosen answer likelier, of {tuned.get('held_out')} pairs held out"}
    others |= {"bits_per_byte": f"bits per byte on {record.get('corpus', {}).get('name')}"}
    for key, what in others.items():
        if key in after:
            table.add_cells(what, f"{before[key]:.3f}", f"{after[key]:.3f}")
    return table


def _title(records: Sequence[Mapping[str, Any]]) -> str:
    record = next((r for r in records if r.get("scores")), None)
    if record is None:
        return "no rung was finished"
    score, tokenizer = record["scores"].get("test", {}), record.get("tokenizer", {})
    return (
        f"{record.get('corpus', {}).get('name', 'a text')}: {score.get('bytes', 0):,} bytes of "
        f"test text in "
        f"{count_documents(score)}, {tokenizer.get('kind')} tokenizer of "
        f"{tokenizer.get('vocab_size', 0):,}"
    )


def _interval(bits: float | None, low: float | None, high: float | None) -> str:
    if bits is None or math.isinf(bits):
        return "infinite"
    return f"{bits:.3f}" if low is None or high is None else f"{bits:.3f} ({low:.2f}-{high:.2f})"


def _estimate(estimate: "SeedMean | None", spec: str) -> str:
    if estimate is None:
        return ""
    interval = (
        f" ({' to '.join(format(end, spec) for end in estimate.interval)})"
        if estimate.interval
        else ""
    )
    return format(estimate.mean, spec) + interval


def _short(value: float | None) -> str:
    """A rate; of millions, three digits."""
    return f"{value / 1e6:.1f}M" if value is not None and value >= 1e6 else format_whole(value)


def _decimal(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:,.{places}f}"
