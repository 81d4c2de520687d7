"""Tables of scores: a run on a text, on standard tasks, on each token of a sentence."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from rung.cli.output import escape_controls
from rung.cli.tables import FittedTable, format_whole
from rung.evaluation.metrics import (
    MIN_SEEN,
    RENORMALIZED,
    explain_reading,
    format_interval,
    format_token_perplexity,
    format_value,
    format_word_perplexity,
    name_bits,
)

if TYPE_CHECKING:
    from rung.evaluation.surprisal import TokenScore

FITTED = ("weight", "sharpness", "learning_rate", "decay")  # what a switch may have fitted
# The colour of a token that costs up to so many bits.
BIT_COLORS = ((2, "green"), (5, "yellow"), (9, "dark_orange"), (float("inf"), "red"))


def score_table(rung: str, corpus: str, split: str, score: Mapping[str, Any]) -> FittedTable:
    """A score with a line for each figure."""
    table = FittedTable(f"{rung} on {corpus}, {split}" + ("" if "text" in split else " split"))
    table.add_column("figure", no_wrap=True)
    table.add_figures("value")
    table.add_column("", overflow="fold")
    table.add_cells(
        name_bits(score), format_bits(score["bits_per_byte"], ".4f"), format_interval(score)
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
    table.add_cells("text", f"{score['bytes']:,} bytes", f"{count_documents(score)}; {how}")
    if score.get("seen_in_training", 0) >= MIN_SEEN:
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
    for name, note in explain_reading(score).items():
        table.add_cells(name, "", note)
    for name, what in (("training ‡", score.get("doubt")), ("machine", score.get("busyness"))):
        if what:
            table.add_cells(name, "", Text(what, style="yellow"))
    _add_proof(table, score)
    for switch in ("mix", "cache", "dynamic"):
        if switch in score:
            _add_variant(table, f"with --{switch}", score[switch])
    return table


def _add_proof(table: FittedTable, score: Mapping[str, Any]) -> None:
    """Add the size of the code that gave the text back, beside that of the score."""
    if proof := score.get("proof"):
        size, wanted = proof["coded_bytes"], proof["score_bytes"]
        share = f" ({size / wanted - 1:+.3%})" if wanted and math.isfinite(wanted) else ""
        beside = f"coded and decoded; the score is {wanted:,.1f} bytes{share}"
        table.add_cells("proven", f"{size:,} bytes", beside)


def _add_variant(table: FittedTable, name: str, variant: Mapping[str, Any]) -> None:
    """Add the score under a switch, its difference from the plain one, and what was fitted."""
    table.add_section()
    table.add_cells(name, format_bits(variant["bits_per_byte"], ".4f"), format_interval(variant))
    less, more = variant["difference_low"], variant["difference_high"]
    interval = "" if less is None else f"95% interval {less:+.3f} to {more:+.3f}"
    table.add_cells("  from plain", format_bits(variant["difference"], "+.4f"), interval)
    if names := variant.get("renormalized"):
        table.add_cells("  no distribution", "", f"{', '.join(names)}: {RENORMALIZED}")
    fitted = variant.get("weights") or {key: variant[key] for key in FITTED if key in variant}
    table.add_cells(
        "  fitted",
        "",
        ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in fitted.items()),
    )
    _add_proof(table, variant)


def tasks_table(found: Mapping[str, Any]) -> FittedTable:
    """The figures of lm-evaluation-harness with a line for each metric of each task."""
    of = "" if found["limit"] is None else f", at most {found['limit']:,} documents of each task"
    title = f"{found['rung']} under {found['harness']}{of}"
    table = FittedTable(title, ("documents", "standard error"))
    table.add_column("task", overflow="fold")
    table.add_figures("documents")
    table.add_column("metric", overflow="fold")
    table.add_figures("value", "standard error")
    for task, figures in found["tasks"].items():
        documents = format_whole(figures["documents"])
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
        if n >= MIN_SEEN
    ]
    notes += [f"no distribution; {RENORMALIZED}"] if found.get("renormalized") else []
    table.caption = Text(escape_controls("\n".join(notes)))
    return table


def surprisal_table(
    pieces: Sequence["TokenScore"], reading: Mapping[str, Any] | None = None
) -> FittedTable:
    """A line for each token with its surprisal and probability, and their total.

    `reading` is what `describe_reading` returns. For a model of n-grams a line also has the length
    of the n-gram that was found, its count, and the discount of that count.
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
    notes = [f"{name}: {what}" for name, what in explain_reading(reading or {}).items()]
    table.caption = Text("\n".join(notes)) if notes else None
    table.add_column("token", "the whole text", overflow="fold")
    table.add_column("bits", f"{bits:.3f}", justify="right", no_wrap=True)
    table.add_column("probability", format_probability(bits), justify="right", no_wrap=True)
    known = {"order": pieces[0].order, "seen": pieces[0].count, "discount": pieces[0].discount}
    columns = [name for name, value in known.items() if value is not None]
    table.add_figures(*columns)
    for piece in pieces:
        color = next(color for limit, color in BIT_COLORS if piece.bits <= limit)
        shown = repr(piece.text)[1:-1] + "(end)" * piece.end
        table.add_cells(
            Text(escape_controls(shown), style=color),
            f"{piece.bits:.3f}",
            format_probability(piece.bits),
            *(counted[c](piece) for c in columns),
        )
    return table


def format_bits(value: float | None, spec: str) -> str:
    """Format a cost in bits. It is infinite, in a record null, after a token of probability 0."""
    return "infinite" if value is None or math.isinf(value) else format(value, spec)


def format_probability(bits: float) -> str:
    """Format the probability that costs so many bits, however small it is."""
    if bits < 1000:
        return f"{2.0**-bits:.4g}"
    power = math.floor(-bits * math.log10(2))
    return f"{10 ** (-bits * math.log10(2) - power):.3f}e{power}"


def count_documents(score: Mapping[str, Any]) -> str:
    """The number of documents of a score, in words."""
    count = score.get("documents", 0)
    return "1 document" if count == 1 else f"{count:,} documents"
