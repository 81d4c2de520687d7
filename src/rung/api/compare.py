"""Compare models on the same documents: `rung.compare`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rung.api.notebook import show_rows
from rung.api.options import CorpusName, check_options, name_corpus
from rung.api.run import READING, Run, load
from rung.evaluation.metrics import MIN_SEEN, NO_FIGURE, RENORMALIZED
from rung.progress import OnProgress, ignore_progress
from rung.workflows.compare import compare_runs
from rung.workflows.evaluate import ScoredText

COMPARISON_HEADS = ("model", "bits per byte", "difference", "95% interval", "sign holds")
FEW_DOCUMENTS = 30  # of which a bootstrap's interval is narrower than Student's t by 6% and more


class Comparison:
    """Models scored on the same documents, each with its difference from the first.

    A notebook shows it as a table.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    @property
    def models(self) -> list[dict[str, Any]]:
        """The figures of each model, by the keys of `rung compare --format json`."""
        return self.facts["models"]

    @property
    def title(self) -> str:
        """The text that was scored, in one line."""
        split = self.facts["split"]
        text = split if "text" in split else f"{split} split"
        count = self.facts["documents"]
        documents = "1 document" if count == 1 else f"{count:,} documents"
        return f"{self.facts['corpus']}, {text}: {self.facts['bytes']:,} bytes in {documents}"

    @property
    def names(self) -> list[str]:
        """The name of each model: its folder's where that is unique, else as it was given."""
        given = [model["runs"][0] for model in self.models]
        short = [Path(name).name for name in given]
        return short if len({*short}) == len(short) else given

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table below `COMPARISON_HEADS`, as text."""
        return [
            _write_row(name, model) for name, model in zip(self.names, self.models, strict=True)
        ]

    @property
    def notes(self) -> list[str]:
        """What to know of the table: how it was made, the spread of the seeds, doubts."""
        return [
            *_note_method(self.names, self.models),
            *(
                note
                for name, model in zip(self.names, self.models, strict=True)
                for note in _note_model(name, model)
            ),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as `rung compare --format json` prints them."""
        return self.facts

    def __repr__(self) -> str:
        return "\n".join([f"Comparison({self.title!r})", *map("  ".join, self.rows)])

    def _repr_html_(self) -> str:
        return show_rows(self.title, COMPARISON_HEADS, self.rows, "; ".join(self.notes))


def _write_row(name: str, model: Mapping[str, Any]) -> list[str]:
    bits = model["bits_per_byte"]
    cells = [name + " ‡" * bool(model["doubt"]), _write_bits(bits) + "*" * model["renormalized"]]
    if "difference" not in model:
        return [*cells, "", "", ""]
    low, high, holds = (model[key] for key in ("difference_low", "difference_high", "sign_holds"))
    difference = model["difference"]
    return [
        *cells,
        "infinite" if difference is None else f"{difference:+.3f}",
        NO_FIGURE if low is None else f"{low:+.3f} to {high:+.3f}",
        NO_FIGURE if holds is None else f"{holds:.1%}",
    ]


def _write_bits(bits: float) -> str:
    return f"{bits:.3f}" if math.isfinite(bits) else "infinite"


def _note_method(names: list[str], models: list[dict[str, Any]]) -> list[str]:
    """How the differences were found, and their intervals by Student's t where these are wider."""
    drawn = [model for model in models if model.get("resamples")]
    if len(models) == 1:
        return []
    if not drawn:
        return [f"differences from {names[0]}; below 0 is better than it"]
    count = drawn[0]["different_documents"]
    notes = [
        f"differences from {names[0]}, below 0 is better than it; 95% intervals, and how often the "
        f"sign holds, from {drawn[0]['resamples']:,} paired resamples of {count:,} documents"
    ]
    if count < FEW_DOCUMENTS:
        wider = (
            f"{name} {model['student_low']:+.3f} to {model['student_high']:+.3f}"
            for name, model in zip(names, models, strict=True)
            if model in drawn
        )
        notes.append(
            f"{count} documents are few, and such an interval too narrow; by Student's t: "
            + ", ".join(wider)
        )
    return notes


def _note_model(name: str, model: Mapping[str, Any]) -> list[str]:
    notes = []
    if model["seeds"]:
        seeds = ", ".join(map(str, model["seeds"]))
        bits = ", ".join(map(_write_bits, model["seed_bits_per_byte"]))
        notes.append(
            f"{name}: the mean of seeds {seeds}, with {bits} bits per byte (standard deviation "
            f"{_write_bits(model['seed_deviation'])}); the interval does not hold their spread"
        )
    if model["renormalized"]:
        notes.append(f"* {name}: no distribution; {RENORMALIZED}")
    if (model["seen_in_training"] or 0) >= MIN_SEEN:
        notes.append(
            f"{name}: {model['seen_in_training']:.0%} of the bytes, line by line, are in its "
            "training text"
        )
    if model["doubt"]:
        notes.append(f"‡ {name}: {model['doubt']}")
    return notes


def compare(
    *runs: str | Path | Run,
    corpus: CorpusName = None,
    split: str = "test",
    on_progress: OnProgress = ignore_progress,
    **reading: str,
) -> Comparison:
    """Score models on the same documents, and compare each with the first, document by document.

    >>> few, many = rung.train("bigram", "my.txt"), rung.train("ngram", "my.txt")
    >>> found = rung.compare(few, many)
    >>> found.models[1]["difference"] < 0
    True

    Each of `runs` is a run folder, a model folder or a Hub id. Without `corpus` they are scored on
    the held-out text that is the runs' own and must be one text. Runs whose recipes differ in the
    seed alone are one model. `reading` has `documents`, `column` and `encoding`: how other text is
    read. Raises a child of `RungError` for a mistake of the user.
    """
    check_options("compare", reading, READING)
    opened = [load(run) for run in runs]
    return Comparison(
        compare_runs(
            [run.name for run in opened],
            [run.options for run in opened],
            ScoredText(name_corpus(corpus), split, reading),
            on_progress,
        )
    )
