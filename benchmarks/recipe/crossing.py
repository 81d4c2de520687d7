"""Draw bits per byte against minutes for every rung, to see from which minute on each one pays.

A run's figure is what it reached, with what the rung's law expects in brackets. Where no run was
made there is the law alone, at the speed that is measured here: `~` marks it, and `~~` where it
reads more tokens or has more weights than any run that the law was fitted to (scaling.jsonl). All
are of the validation text that training watches, n-grams and lzma too.

    python benchmarks/recipe/crossing.py [CORPUS] [--measured RUN ...] \\
        > benchmarks/recipe/crossing.txt

It also writes the same table, and a figure, as `crossing` in docs/results (--out). RUN are runs of
`rung train RUNG CORPUS --minutes N`, or of a climb.
"""

import argparse
import io
import json
import tempfile
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

FITTED = Path(__file__).with_name("scaling.jsonl")
MINUTES = (1, 2, 3, 5, 7, 10, 15, 20, 30)
NGRAM, LZMA = "ngram", "lzma after train"


@dataclass(frozen=True)
class Point:
    """Bits per byte at some minutes: what a run reached, if there is one, and what the law says."""

    law: float
    is_beyond: bool
    reached: float | None = None

    @property
    def bits(self):
        return self.law if self.reached is None else self.reached

    @property
    def mark(self):
        return "" if self.reached is not None else "~~" if self.is_beyond else "~"

    def __str__(self):
        bits = f"{self.mark}{self.bits:.3f}"
        return bits if self.reached is None else f"{bits} (~{'~' * self.is_beyond}{self.law:.3f})"


def prepare_rung(rung, source, folder):
    from rung.progress import ignore_progress
    from rung.recipe import make_recipe
    from rung.training.clock import now
    from rung.workflows.prepare import prepare

    recipe = make_recipe({"rung": rung, "corpus": source})
    return prepare(recipe, Path(folder) / rung, ignore_progress, now())


def find_levels(prepared):
    """Count the n-grams of the whole text, and compress the validation text after it."""
    from rung.evaluation.compressors import lzma_after_train
    from rung.evaluation.score import score_documents
    from rung.models import find_rung, make_config
    from rung.workflows.prepare import sample_validation

    texts, packed = sample_validation(prepared.corpus), prepared.packed
    config = make_config(NGRAM, prepared.tokenizer, {})
    model = find_rung(NGRAM).model_class.fit(config, packed.tokens, packed.starts).eval()
    levels = {NGRAM: score_documents(model, prepared.tokenizer, texts).bits_per_byte}
    lzma, _ = lzma_after_train(texts, prepared.corpus.train["text"])
    return levels | {LZMA: lzma}


def find_most_fitted(rung):
    """Return the most weights and the most tokens of a run that the rung's law was fitted to."""
    runs = [json.loads(line) for line in FITTED.read_text().splitlines()]
    mine = [run for run in runs if run["rung"] == rung]
    return tuple(max(run[key] for run in mine) for key in ("parameters", "tokens"))


def make_curve(prepared, measured):
    """Return a rung's point at each number of minutes, and at those of the runs that it made."""
    from rung.workflows.budget import HELD_BACK, measure_forecast, suggest_parameters
    from rung.workflows.difficulty import measure_difficulty
    from rung.workflows.prepare import CONTEXT, DEFAULT_MINUTES, sample_validation

    texts = sample_validation(prepared.corpus)
    difficulty = measure_difficulty(prepared.tokenizer, prepared.packed, texts, CONTEXT)
    forecast = measure_forecast(prepared, difficulty, suggest_parameters(DEFAULT_MINUTES))
    weights, tokens = find_most_fitted(prepared.recipe.rung)
    curve = {}
    for minutes in sorted({*MINUTES, *measured}):
        seconds = max(1.0, (60 * minutes - forecast.speed.overhead) * (1 - HELD_BACK))
        shape = forecast.choose(seconds)
        is_beyond = (
            shape.parameters > weights or forecast.count_tokens(shape, seconds) > 1.1 * tokens
        )
        law = forecast.expect(shape, seconds)
        curve[minutes] = Point(law, is_beyond, measured.get(minutes))
    return curve


def read_measured(folders):
    """Read what runs reached, by rung and minutes."""
    from rung import runs

    measured = defaultdict(dict)
    for folder in folders:
        record = runs.read_record(folder)
        lines = runs.read_metrics(folder)
        reached = [line["bits_per_byte"] for line in lines if "bits_per_byte" in line]
        if reached and record["recipe"].get("minutes"):
            measured[record["rung"]][record["recipe"]["minutes"]] = min(reached)
    return measured


def find_crossing(points, level):
    """Return the first of the minutes at which a rung is below a level, marked as that figure."""
    return next((f"{p.mark}{m:g}" for m, p in sorted(points.items()) if p.bits < level), "later")


def write_table(curves, levels, source):
    """Print the table; a figure that was not measured has a tilde or two."""
    from rung.device import choose_device, describe_device

    print("# From which minute does each rung pay?\n")
    print(f"Bits per byte on the validation text of {source}, by minutes of `rung train RUNG`;")
    print("written by `python benchmarks/recipe/crossing.py`. A figure without a mark is a run's,")
    print(
        "and in brackets is what the rung's law expects. `~`: no run, but what the law expects at"
    )
    print(
        "the speed measured here; `~~`: the same, of more weights or tokens than any run that the"
    )
    print(
        "law was fitted to. From 20 minutes on runs have longer rows, which the laws do not know."
    )
    print(f"{describe_device(choose_device())}.\n")
    for name, level in levels.items():
        print(f"- {name}: {level:.3f}")
    minutes = sorted({m for points in curves.values() for m in points})
    head = ["rung", *(f"{m:g} min" for m in minutes), *(f"below {name} from" for name in levels)]
    print(f"\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for rung, points in curves.items():
        cells = [str(points.get(m, "")) for m in minutes]
        cells += [find_crossing(points, level) for level in levels.values()]
        print(f"| {rung} | {' | '.join(cells)} |")


def draw(curves, levels, out):
    """Draw a line for each rung, with dots where it was measured, and dashed levels."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4.5), layout="constrained")
    for rung, points in curves.items():
        minutes = sorted(points)
        (line,) = axes.plot(minutes, [points[m].law for m in minutes], label=rung)
        made = [m for m in minutes if points[m].reached is not None]
        axes.plot(made, [points[m].reached for m in made], "o", color=line.get_color())
    for name, level in levels.items():
        axes.axhline(level, linestyle="--", color="grey")
        axes.annotate(name, (MINUTES[-1], level), ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", xlabel="minutes", ylabel="bits per byte (lower is better)")
    axes.set_xticks(MINUTES, [str(m) for m in MINUTES])
    figure.legend(title="line: law; dot: run", loc="outside right upper")
    figure.savefig(out, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", nargs="?", default="python-docs")
    parser.add_argument("--measured", nargs="*", default=[], metavar="RUN", type=Path)
    parser.add_argument("--out", default=Path("docs/results/crossing"), type=Path)
    chosen = parser.parse_args()
    from rung.ladder import LADDER
    from rung.workflows.scaling import SCALING_LAWS

    curves, measured = {}, read_measured(chosen.measured)
    with tempfile.TemporaryDirectory() as folder:
        for rung in (name for name in LADDER if name in SCALING_LAWS):
            prepared = prepare_rung(rung, chosen.corpus, folder)
            curves[rung] = make_curve(prepared, measured[rung])
        levels = find_levels(prepared)
    table = io.StringIO()
    with redirect_stdout(table):
        write_table(curves, levels, Path(chosen.corpus).name)
    Path(f"{chosen.out}.txt").write_text(table.getvalue(), encoding="utf-8")
    print(table.getvalue(), end="")
    draw(curves, levels, f"{chosen.out}.svg")


if __name__ == "__main__":
    main()
