"""What the terminal shows of a result: tables that are read at a glance."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from rung import runs
from rung.cli.fitted_table import FittedTable
from rung.cli.output import escape_controls, show_logs
from rung.evaluation.metrics import (
    LZMA_AFTER_TRAIN,
    RENORMALIZED,
    REPLACEMENT_CHARACTER,
    REPLACEMENT_NOTE,
    format_interval,
    format_token_perplexity,
    format_value,
    format_word_perplexity,
)

if TYPE_CHECKING:
    from rung.evaluation.surprisal import TokenScore
    from rung.models.sizes import Size
    from rung.report.summaries import RunSummary
    from rung.report.swaps import SeedMean, SwapResult
    from rung.workflows.verify_resume import Verdict

FITTED = ("weight", "sharpness", "learning_rate", "decay")  # what a switch may have fitted
SHOWN_LOSSES = 8
SHOWN_SEEN = 0.01  # of a text, that a run was trained on
SHADES = (
    (2, "green"),
    (5, "yellow"),
    (9, "dark_orange"),
    (float("inf"), "red"),
)  # up to so many bits


def make_quiet() -> None:
    """Silence what the libraries below say about themselves; rung says what matters."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    show_logs()
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def climb_table(rows: Sequence["RunSummary"], folders: Iterable[Path]) -> FittedTable:
    """The ladder: one row for each rung, and the compressors' marks below; why one failed stands
    under the table.
    """
    records = [
        runs.read_record_or_failure(folder) for folder in folders if (folder / runs.RECORD).exists()
    ]
    gives_way = ("a sample", "word ppl", "tokens/s", "seconds", "token ppl", "parameters")
    table = FittedTable(_title(records), gives_way, title_style="bold")
    table.add_column("rung", no_wrap=True)
    table.add_figures("parameters", "seconds", "tokens/s", "token ppl", "word ppl", "bits per byte")
    table.add_column("a sample", no_wrap=True, max_width=48)
    best = min(
        (row.bits_per_byte for row in rows if row.bits_per_byte is not None and not row.doubt),
        default=None,
    )
    for row in rows:
        if row.failed:
            state = row.failed if row.failed == "not finished" else "failed"
            table.add_cells(row.rung, "", "", "", "", "", Text(state, style="red"), "")
            continue
        table.add_cells(
            Text(f"{row.rung} ‡", style="yellow") if row.doubt else row.rung,
            _whole(row.parameters),
            _decimal(row.seconds, 1),
            _short(row.tokens_per_second),
            row.token_perplexity,
            row.word_perplexity,
            Text(
                _interval(row.bits_per_byte, row.low, row.high) + "*" * row.renormalized,
                style="bold green" if row.bits_per_byte == best else "",
            ),
            " ".join((row.sample or "").split()),
        )
    marks: dict[str, float] = max((r.get("marks") or {} for r in records), key=len, default={})
    if marks:
        table.add_section()
    for name, bits in marks.items():
        table.add_cells(
            Text(name, style="dim"), *[""] * 5, Text(f"{bits:.3f}             ", style="dim"), ""
        )
    reasons = [
        f"{row.rung} failed: {row.failed}"
        for row in rows
        if row.failed not in (None, "not finished")
    ]
    broken = any(REPLACEMENT_CHARACTER in (row.sample or "") for row in rows)
    table.captions["a sample"] = REPLACEMENT_NOTE if broken else ""
    reasons += [
        f"* {row.rung}: no distribution; {RENORMALIZED}" for row in rows if row.renormalized
    ]
    reasons += [f"‡ {row.rung}: {row.doubt}" for row in rows if row.doubt]
    reasons += [f"{row.rung}: {row.busyness}" for row in rows if row.busyness]
    left_out = next((r["marks_left_out"] for r in records if "marks_left_out" in r), "")
    reasons += [left_out] if left_out and LZMA_AFTER_TRAIN not in marks else []
    table.caption = Text(escape_controls("\n".join(reasons))) if reasons else None
    return table


def swaps_table(rows: Sequence["SwapResult"], folders: Iterable[Path]) -> FittedTable:
    """What each swap buys: a row for each model, its difference from the first, and whether they
    add up.
    """
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
            _whole(row.parameters),
            _decimal(row.seconds, 1),
            _estimate(row.bits, ".3f"),
            Text(_estimate(row.difference, "+.3f"), style="bold" if row.is_clear else ""),
        )
    return table


def resume_table(verdict: "Verdict") -> FittedTable:
    """Where the kills fell, losses side by side, and what is the same to the last bit."""
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


def score_table(rung: str, corpus: str, split: str, score: Mapping[str, Any]) -> FittedTable:
    """One score, a line for each figure."""
    table = FittedTable(f"{rung} on {corpus}, {split}" + ("" if "text" in split else " split"))
    table.add_column("figure", no_wrap=True)
    table.add_figures("value")
    table.add_column("", overflow="fold")
    table.add_cells(
        "bits per byte", show_figure(score["bits_per_byte"], ".4f"), format_interval(score)
    )
    if score.get("renormalized"):
        table.add_cells("no distribution", "", RENORMALIZED)
    table.add_cells("word perplexity", format_word_perplexity(score), f"{score['words']:,} words")
    table.add_cells(
        "token perplexity", format_token_perplexity(score), f"{score['tokens']:,} tokens"
    )
    how = "each read whole, without a window"
    if score["window"] is not None:
        how = f"window {score['window']}, stride {score['stride']}"
    table.add_cells("text", f"{score['bytes']:,} bytes", f"{_count_documents(score)}; {how}")
    if score.get("seen_in_training", 0) >= SHOWN_SEEN:
        table.add_cells(
            "seen",
            f"{score['seen_in_training']:.0%}",
            "of the bytes, line by line, in the training text",
        )
    if score["unknown_words"] and score["nats"]:
        bits = score["unknown_nats"] / score["nats"]
        table.add_cells(
            "unknown words", f"{score['unknown_words']:,}", f"spelled out: {bits:.0%} of the cost"
        )
    if score.get("dropped_bytes") and score["nats"]:
        bits = score["dropped_nats"] / score["nats"]
        table.add_cells(
            "dropped text",
            f"{score['dropped_bytes']:,} bytes",
            f"spelled out: {bits:.0%} of the cost",
        )
    if score["lost"]:
        table.add_cells("lost", "", f"the tokenizer does not keep {', '.join(score['lost'])}")
    for name, what in (("training ‡", score.get("doubt")), ("machine", score.get("busyness"))):
        if what:
            table.add_cells(name, "", Text(what, style="yellow"))
    for switch in ("mix", "cache", "dynamic"):
        if switch in score:
            _add_variant(table, f"with --{switch}", score[switch])
    return table


def _add_variant(table: FittedTable, name: str, variant: Mapping[str, Any]) -> None:
    """Bits per byte under a switch, how far that is from the plain score, and what was fitted."""
    table.add_section()
    table.add_cells(name, show_figure(variant["bits_per_byte"], ".4f"), format_interval(variant))
    less, more = variant["difference_low"], variant["difference_high"]
    interval = "" if less is None else f"95% interval {less:+.3f} to {more:+.3f}"
    table.add_cells("  from plain", show_figure(variant["difference"], "+.4f"), interval)
    if names := variant.get("renormalized"):
        table.add_cells("  no distribution", "", f"{', '.join(names)}: {RENORMALIZED}")
    fitted = variant.get("weights") or {key: variant[key] for key in FITTED if key in variant}
    table.add_cells(
        "  fitted",
        "",
        ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in fitted.items()),
    )


def tasks_table(found: Mapping[str, Any]) -> FittedTable:
    """What lm-evaluation-harness found: a line for each metric of each task."""
    of = "" if found["limit"] is None else f", at most {found['limit']:,} documents of each task"
    title = f"{found['rung']} under {found['harness']}{of}"
    table = FittedTable(title, ("documents", "standard error"))
    table.add_column("task", overflow="fold")
    table.add_figures("documents")
    table.add_column("metric", overflow="fold")
    table.add_figures("value", "standard error")
    for task, figures in found["tasks"].items():
        documents = _whole(figures["documents"])
        for row in figures["metrics"]:
            name = (
                row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
            )
            value = row["value"] if isinstance(row["value"], str) else format_value(row["value"])
            error = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
            table.add_cells(task, documents, name, value, error)
    seen = {task: figures.get("seen_in_training", 0) for task, figures in found["tasks"].items()}
    notes = [
        f"{task}: {n:.0%} of its bytes, by lines, were trained on"
        for task, n in seen.items()
        if n >= SHOWN_SEEN
    ]
    notes += [f"no distribution; {RENORMALIZED}"] if found.get("renormalized") else []
    table.caption = Text(escape_controls("\n".join(notes)))
    return table


def show_figure(value: float | None, spec: str) -> str:
    """A cost, which is infinite (in a record: null) where a token was given probability 0."""
    return "infinite" if value is None or math.isinf(value) else format(value, spec)


def show_probability(bits: float) -> str:
    """The probability that so many bits stand for; also one that is smaller than any floating-point
    number.
    """
    if bits < 1000:
        return f"{2.0**-bits:.4g}"
    power = math.floor(-bits * math.log10(2))
    return f"{10 ** (-bits * math.log10(2) - power):.3f}e{power}"


def surprisal_table(pieces: Sequence["TokenScore"]) -> FittedTable:
    """Each token with its surprisal and probability, and the whole; of an n-gram, how long a one
    was found, how often it was seen, and what was taken from that count.
    """
    from rung.models.ngram.smoothing import MAX_STORED_COUNT

    counted: dict[str, Callable[[TokenScore], str]] = {
        "order": lambda piece: f"{piece.order}",
        "seen": lambda piece: f"{piece.count}{'+' if piece.count == MAX_STORED_COUNT else ''}",
        "discount": lambda piece: f"{piece.discount:.3f}",
    }
    bits = sum(piece.bits for piece in pieces)
    table = FittedTable(gives_way=("discount", "seen", "order"))
    table.show_footer = True
    table.captions["bits"] = f"no distribution; {RENORMALIZED}" if pieces[0].renormalized else ""
    table.add_column("token", "the whole text", overflow="fold")
    table.add_column("bits", f"{bits:.3f}", justify="right", no_wrap=True)
    table.add_column("probability", show_probability(bits), justify="right", no_wrap=True)
    known = {"order": pieces[0].order, "seen": pieces[0].count, "discount": pieces[0].discount}
    columns = [name for name, value in known.items() if value is not None]
    table.add_figures(*columns)
    for piece in pieces:
        color = next(color for limit, color in SHADES if piece.bits <= limit)
        shown = repr(piece.text)[1:-1] + "(end)" * piece.end
        table.add_cells(
            Text(escape_controls(shown), style=color),
            f"{piece.bits:.3f}",
            show_probability(piece.bits),
            *(counted[c](piece) for c in columns),
        )
    return table


def runs_table(found: Iterable[tuple[Path, Mapping[str, Any]]]) -> FittedTable:
    """A line for each run, and why it failed below its name; runs on one text stand together, for
    only they compare.
    """
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
        bits = show_figure(cost, ".3f") + "*" * bool(score.get("renormalized")) if score else state
        if score and score.get("renormalized"):
            table.captions["bits per byte"] = f"* no distribution; {RENORMALIZED}"
        doubted = " ‡" if score and runs.explain_doubtful_score(dict(record)) else ""
        if doubted:
            table.caption = Text("‡ too few training steps to have learned anything")
        table.add_cells(
            name, record["rung"] + doubted, record.get("corpus", {}).get("name", ""), bits + doubted
        )


def summarize_run(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What `rung runs --json` says of each run."""
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
    """What tuning changed: answers to each set of held-out questions, and the text that the base
    was made of.
    """
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


def sizes_table(sizes: Mapping[str, "Size"]) -> FittedTable:
    """A line for each size; the weights' memory while they are trained, and in half of the
    precision.
    """
    table = FittedTable(
        gives_way=("weights", "GB in bfloat16", "vocabulary", "context", "GB in float32")
    )
    table.add_column("size", no_wrap=True)
    table.add_figures("parameters", "vocabulary", "context", "GB in float32", "GB in bfloat16")
    table.add_column("weights", no_wrap=True)
    for name, size in sizes.items():
        memory = [f"{size.parameters * width / 1e9:,.3f}" for width in (4, 2)]
        shown = "published" if size.is_published else ""
        table.add_cells(
            name,
            f"{size.parameters:,}",
            f"{size.vocab_size:,}",
            f"{size.context:,}",
            *memory,
            shown,
        )
    return table


def names_table(kind: str, names: Mapping[str, str]) -> FittedTable:
    """Names and what they stand for."""
    table = FittedTable()
    table.add_column(kind, overflow="fold")
    table.add_column("what it is", overflow="fold")
    for name, description in names.items():
        table.add_cells(Text(name, style="bold"), description)
    return table


def _count_documents(score: Mapping[str, Any]) -> str:
    count = score.get("documents", 0)
    return "1 document" if count == 1 else f"{count:,} documents"


def _title(records: Sequence[Mapping[str, Any]]) -> str:
    record = next((r for r in records if r.get("scores")), None)
    if record is None:
        return "no rung was finished"
    score, tokenizer = record["scores"].get("test", {}), record.get("tokenizer", {})
    return (
        f"{record.get('corpus', {}).get('name', 'a text')}: {score.get('bytes', 0):,} bytes of "
        f"test text in "
        f"{_count_documents(score)}, {tokenizer.get('kind')} tokenizer of "
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


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _short(value: float | None) -> str:
    """A rate; of millions, three digits."""
    return f"{value / 1e6:.1f}M" if value is not None and value >= 1e6 else _whole(value)


def _decimal(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:,.{places}f}"
