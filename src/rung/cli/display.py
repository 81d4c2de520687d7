"""What the terminal shows: progress with rates and time left, and tables read at a glance."""

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rung import ranks, runs
from rung.figures import show_interval, show_token_perplexity, show_value, show_word_perplexity

if TYPE_CHECKING:
    from rung.evaluate import TokenScore
    from rung.models.sizes import Size
    from rung.recipe.stages import Stage
    from rung.report import Row
    from rung.report.swaps import Estimate, SwapRow
    from rung.verify import Verdict

FITTED = ("weight", "sharpness", "learning_rate", "decay")  # what a switch may have fitted
SHOWN_LOSSES = 8
SHADES = ((2, "green"), (5, "yellow"), (9, "dark_orange"), (float("inf"), "red"))  # up to so many bits


def make_quiet() -> None:
    """Silence what the libraries below say about themselves; rung says what matters."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING if ranks.is_main() else logging.ERROR, format="rung: %(message)s")
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


class Display:
    """One line for each rung on standard error, its bar moving through the stages; of several processes, the main's."""

    def __init__(self) -> None:
        self.progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.fields[rung]:<14}"),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=20),
            _Elapsed(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not ranks.is_main(),
        )
        self.tasks: dict[str, TaskID] = {}
        self.current = ""

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.current:
            self._finish(self.current)
        self.progress.stop()

    def tell(self, rung: str, stage: "Stage") -> None:
        """Show that `rung` is in this stage."""
        if rung not in self.tasks:
            if self.current:
                self._finish(self.current)
            began = time.monotonic()
            self.tasks[rung] = self.progress.add_task(
                stage.name, total=None, rung=rung, note="", began=began, took=None
            )
            self.current = rung
        if stage.name == "planned":
            self.progress.console.print(f"[bold]{rung}[/]: {stage.note}", highlight=False)
            return
        task = self.tasks[rung]
        shown = self.progress.tasks[self.progress.task_ids.index(task)]
        if shown.description != stage.name:
            self.progress.reset(task, description=stage.name, total=stage.total, **{**shown.fields, "note": ""})
        self.progress.update(task, completed=stage.done, total=stage.total)
        if stage.note:
            self.progress.update(task, note=stage.note)

    def _finish(self, rung: str) -> None:
        task = self.progress.tasks[self.progress.task_ids.index(self.tasks[rung])]
        took = time.monotonic() - task.fields["began"]
        self.progress.update(task.id, description="done", completed=1, total=1, took=took)


class _Elapsed(ProgressColumn):
    """The time a rung has taken through all its stages; a bar starts again with each."""

    def render(self, task: Task) -> Text:
        """Minutes and seconds."""
        took = task.fields["took"]
        seconds = time.monotonic() - task.fields["began"] if took is None else took
        return Text(f"{int(seconds) // 60}:{int(seconds) % 60:02d}", style="progress.elapsed")


def show(table: Table) -> None:
    """Print on standard output, as wide as the table is where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def climb_table(rows: Sequence["Row"], folders: Iterable[Path]) -> Table:
    """The ladder: one row for each rung, and the compressors' marks below."""
    records = [runs.read_record(folder) for folder in folders if (folder / runs.RECORD).exists()]
    table = Table(box=box.SIMPLE_HEAD, title=_title(records), title_justify="left", title_style="bold")
    table.add_column("rung", no_wrap=True)
    for name in ("parameters", "seconds", "tokens/s", "token ppl", "word ppl", "bits per byte"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("a sample", overflow="ellipsis", no_wrap=True, max_width=48)
    best = min((row.bits_per_byte for row in rows if row.bits_per_byte is not None), default=None)
    for row in rows:
        if row.failed:
            table.add_row(row.rung, Text(f"failed: {row.failed}", style="red"))
            continue
        style = "bold green" if row.bits_per_byte == best else ""
        table.add_row(
            row.rung,
            _whole(row.parameters),
            _decimal(row.seconds, 1),
            _whole(row.tokens_per_second),
            row.token_perplexity,
            row.word_perplexity,
            Text(_interval(row.bits_per_byte, row.low, row.high), style=style),
            " ".join((row.sample or "").split()),
        )
    marks: dict[str, float] = next((r["marks"] for r in records if "marks" in r), {})
    if marks:
        table.add_section()
    for name, bits in marks.items():
        table.add_row(Text(name, style="dim"), "", "", "", "", "", Text(f"{bits:.3f}             ", style="dim"), "")
    return table


def swaps_table(rows: Sequence["SwapRow"], folders: Iterable[Path]) -> Table:
    """What each swap buys: a row for each model, its difference from the first, and whether they add up."""
    from rung.report.swaps import sum_of_parts

    records = [record for record in map(runs.read_record, folders) if "scores" in record]
    steps, tokens = (records[0]["training"][key] for key in ("steps", "tokens"))
    seeds = ", ".join(dict.fromkeys(str(record["seed"]) for record in records))
    title = f"{_title(records)};\n{steps:,} steps of {tokens // steps:,} tokens; 95% intervals over the seeds {seeds}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.caption, table.caption_justify, table.caption_style = sum_of_parts(list(rows)), "left", ""
    for name in ("model", "swap"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "seconds", "bits per byte", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            row.idea,
            _whole(row.parameters),
            _decimal(row.seconds, 1),
            _estimate(row.bits, ".3f"),
            Text(_estimate(row.difference, "+.3f"), style="bold" if row.is_clear else ""),
        )
    return table


def resume_table(verdict: "Verdict") -> Table:
    """Where the kills fell, losses side by side, and what is the same to the last bit."""
    found = verdict.as_dict()
    fell = ", ".join(f"{count} while {phase}" for phase, count in found["fell"].items() if count)
    title = f"{found['rung']} on {found['corpus']}, {found['steps']:,} steps\nkilled {found['kills']:,} times: {fell}"
    table = Table("", box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", min_width=70)
    for name in ("uninterrupted", "killed and resumed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    losses = verdict.losses()
    shown = [row for row in losses if row[1] != row[2]][:SHOWN_LOSSES]
    shown = shown or [losses[(len(losses) - 1) * n // (SHOWN_LOSSES - 1)] for n in range(SHOWN_LOSSES) if losses]
    for step, left, right in dict.fromkeys(shown):
        style, mark = ("", "=") if left == right else ("red", "≠")
        table.add_row(
            f"loss at step {step}", repr(left), Text("none" if right is None else repr(right), style=style), mark
        )
    table.add_section()
    counts = {
        "metrics": f"{len(verdict.whole.metrics)} lines",
        "samples": "",
        "scores": "",
        "weights": verdict.whole.weights[:16],
    }
    for name, count in counts.items():
        differs = name in verdict.differences or not verdict.resumed
        table.add_row(name, count, Text("differ", style="red") if differs else Text("the same", style="green"), "")
    if verdict.failure:
        table.add_row("failed", "", Text(verdict.failure, style="red", overflow="fold"), "")
    return table


def score_table(rung: str, corpus: str, split: str, score: Mapping[str, Any]) -> Table:
    """One score, a line for each figure."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{rung} on {corpus}, {split} split", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("")
    table.add_row("bits per byte", show_figure(score["bits_per_byte"], ".4f"), show_interval(score))
    table.add_row("word perplexity", show_word_perplexity(score), f"{score['words']:,} words")
    table.add_row("token perplexity", show_token_perplexity(score), f"{score['tokens']:,} tokens")
    how = "state carried through each document"
    if score["window"] is not None:
        how = f"window {score['window']}, stride {score['stride']}"
    table.add_row("text", f"{score['bytes']:,} bytes", f"{score['documents']:,} documents; {how}")
    if score["unknown_words"] and score["nats"]:
        bits = score["unknown_nats"] / score["nats"]
        table.add_row("unknown words", f"{score['unknown_words']:,}", f"spelled out: {bits:.0%} of the cost")
    if score["lost"]:
        table.add_row("lost", ", ".join(score["lost"]), "the tokenizer does not keep these")
    for switch in ("mix", "cache", "dynamic"):
        if switch in score:
            _add_variant(table, f"with --{switch}", score[switch])
    return table


def _add_variant(table: Table, name: str, variant: Mapping[str, Any]) -> None:
    """Bits per byte under a switch, how far that is from the plain score, and what was fitted."""
    table.add_section()
    table.add_row(name, show_figure(variant["bits_per_byte"], ".4f"), show_interval(variant))
    less, more = variant["difference_low"], variant["difference_high"]
    interval = "" if less is None else f"95% interval {less:+.3f} to {more:+.3f}"
    table.add_row("  from plain", show_figure(variant["difference"], "+.4f"), interval)
    fitted = variant.get("weights") or {key: variant[key] for key in FITTED if key in variant}
    table.add_row("  fitted", "", ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in fitted.items()))


def tasks_table(found: Mapping[str, Any]) -> Table:
    """What lm-evaluation-harness found: a line for each metric of each task."""
    of = "" if found["limit"] is None else f", at most {found['limit']:,} documents of each task"
    title = f"{found['rung']} under {found['harness']}{of}"
    table = Table("task", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("documents", justify="right")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for task, figures in found["tasks"].items():
        documents = _whole(figures["documents"])
        for row in figures["metrics"]:
            name = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
            value = row["value"] if isinstance(row["value"], str) else show_value(row["value"])
            error = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
            table.add_row(task, documents, name, value, error)
    return table


def show_figure(value: float | None, spec: str) -> str:
    """A cost, which is infinite (in a record: null) where a token was given probability 0."""
    return "infinite" if value is None or math.isinf(value) else format(value, spec)


def surprisal_table(pieces: Sequence["TokenScore"]) -> Table:
    """Each token with its surprisal and probability, and the whole; of an n-gram, how long a one was found, how often
    it was seen, and what was taken from that count.
    """
    from rung.models.ngram.smoothing import MOST_COUNTED

    counted: dict[str, Callable[[TokenScore], str]] = {
        "order": lambda piece: f"{piece.order}",
        "seen": lambda piece: f"{piece.count}{'+' if piece.count == MOST_COUNTED else ''}",
        "discount": lambda piece: f"{piece.discount:.3f}",
    }
    bits = sum(piece.bits for piece in pieces)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("token", "the whole text")
    table.add_column("bits", f"{bits:.3f}", justify="right")
    table.add_column("probability", f"{2.0**-bits:.4g}", justify="right")
    known = {"order": pieces[0].order, "seen": pieces[0].count, "discount": pieces[0].discount}
    columns = [name for name, value in known.items() if value is not None]
    for name in columns:
        table.add_column(name, justify="right")
    for piece in pieces:
        color = next(color for limit, color in SHADES if piece.bits <= limit)
        shown = repr(piece.text)[1:-1] if piece.text else "(end)"
        table.add_row(
            Text(shown, style=color),
            f"{piece.bits:.3f}",
            f"{2.0**-piece.bits:.4g}",
            *(counted[c](piece) for c in columns),
        )
    return table


def runs_table(found: Iterable[tuple[Path, Mapping[str, Any]]]) -> Table:
    """A line for each run."""
    table = Table("run", "rung", "corpus", box=box.SIMPLE_HEAD)
    table.add_column("bits per byte", justify="right")
    for folder, record in found:
        score = record.get("scores", {}).get("test")
        unscored = "imported" if "imported" in record else record.get("failed", "not finished")
        state = show_figure(score["bits_per_byte"], ".3f") if score else unscored
        table.add_row(str(folder), record["rung"], record.get("corpus", {}).get("name", ""), state)
    return table


def tuning_table(record: Mapping[str, Any]) -> Table:
    """What tuning changed: answers to each set of held-out questions, and the text that the base was made of."""
    tuned = record["tune"]
    before, after, lookup = tuned["before"], tuned["after"], tuned.get("lookup", {})
    table = Table("", box=box.SIMPLE_HEAD, title=f"{record['rung']}, tuned on {tuned['data']}", title_justify="left")
    for name in ("before", "after", *(f"by {kind}" for kind in next(iter(lookup.values()), {}))):
        table.add_column(name, justify="right")
    for name, answers in after.get("answers", {}).items():
        sides = [before["answers"][name], answers, *lookup[name].values()]
        for key, what in (("f1", "token F1"), ("exact", "exact"), ("token_perplexity", "token perplexity")):
            shown = [f"{side[key]:.3f}" if key in side else "" for side in sides]
            table.add_row(f"{name}: {what} of {answers['questions']} answers", *shown)
    others = {"preferred": f"chosen answer likelier, of {tuned.get('held_out')} pairs held out"}
    others |= {"bits_per_byte": f"bits per byte on {record.get('corpus', {}).get('name')}"}
    for key, what in others.items():
        if key in after:
            table.add_row(what, f"{before[key]:.3f}", f"{after[key]:.3f}")
    return table


def sizes_table(sizes: Mapping[str, "Size"]) -> Table:
    """A line for each size; the weights' memory while they are trained, and in half of the precision."""
    table = Table("size", box=box.SIMPLE_HEAD)
    for name in ("parameters", "vocabulary", "context", "GB in float32", "GB in bfloat16"):
        table.add_column(name, justify="right")
    table.add_column("weights")
    for name, size in sizes.items():
        memory = [f"{size.parameters * width / 1e9:,.3f}" for width in (4, 2)]
        shown = "published" if size.is_published else ""
        table.add_row(name, f"{size.parameters:,}", f"{size.vocab_size:,}", f"{size.context:,}", *memory, shown)
    return table


def names_table(kind: str, names: Mapping[str, str]) -> Table:
    """Names and what they stand for."""
    table = Table(kind, "what it is", box=box.SIMPLE_HEAD)
    for name, description in names.items():
        table.add_row(Text(name, style="bold"), description)
    return table


def _title(records: Sequence[Mapping[str, Any]]) -> str:
    record = next((r for r in records if r.get("scores")), None)
    if record is None:
        return "no rung was finished"
    score, tokenizer = record["scores"]["test"], record["tokenizer"]
    return (
        f"{record['corpus']['name']}: {score['bytes']:,} bytes of test text in {score['documents']:,} documents, "
        f"{tokenizer['kind']} tokenizer of {tokenizer['vocab_size']:,}"
    )


def _interval(bits: float | None, low: float | None, high: float | None) -> str:
    if bits is None:
        return ""
    return f"{bits:.3f}" if low is None or high is None else f"{bits:.3f} ({low:.2f}-{high:.2f})"


def _estimate(estimate: "Estimate | None", spec: str) -> str:
    if estimate is None:
        return ""
    interval = f" ({' to '.join(format(end, spec) for end in estimate.interval)})" if estimate.interval else ""
    return format(estimate.mean, spec) + interval


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _decimal(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:,.{places}f}"
