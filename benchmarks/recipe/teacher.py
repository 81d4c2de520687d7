"""Train llama3 with an n-gram model as its teacher and without, at equal tokens and equal CPU time.

Bits per byte of the validation text that training watches, at the end, by seed. The CPU time holds
the teacher's counting. It takes a text of which a run of so many tokens reads a small part.

    python benchmarks/recipe/teacher.py TEXT [MILLIONS] [WIDTH] > benchmarks/recipe/teacher.txt
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rung import runs
from rung.device import choose_device, describe_device
from rung.progress import ignore_progress
from rung.recipe import make_recipe
from rung.training.clock import now
from rung.workflows.fit import fit
from rung.workflows.prepare import prepare

SEEDS = (0, 1, 2)


def train(prepared, steps, **settings):
    """Return the bits per byte that so many steps reach, and the seconds of CPU time they take."""
    with tempfile.TemporaryDirectory() as folder:
        train = {**prepared.recipe.train, "eval_steps": steps, "save_steps": steps}
        recipe = replace(prepared.recipe, steps=steps, train=train, **settings)
        began = time.process_time()
        fit(replace(prepared, recipe=recipe, folder=Path(folder)), ignore_progress)
        seconds = time.process_time() - began
        lines = runs.read_metrics(Path(folder))
        return min(line["bits_per_byte"] for line in lines if "bits_per_byte" in line), seconds


def main():
    corpus = sys.argv[1] if len(sys.argv) > 1 else "python-docs"
    millions = float(sys.argv[2]) if len(sys.argv) > 2 else 0.8
    width = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    print(f"{width} wide, on {Path(corpus).name}; {describe_device(choose_device())}")
    model = {"hidden_size": width, "num_hidden_layers": 2}
    recipe = make_recipe({"rung": "llama3", "corpus": corpus, "model": model, "steps": 1})
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(recipe, Path(folder) / "run", ignore_progress, now())
        recipe = prepared.recipe
        tokens = recipe.model["max_position_embeddings"] * recipe.global_batch_size
        train(prepared, 2)  # what is compiled is compiled
        steps = round(millions * 1e6 / tokens)
        plain = show("no teacher", prepared, steps, tokens)
        taught = show("ngram", prepared, steps, tokens)
        show("no teacher", prepared, round(steps * taught / plain), tokens)


def show(name, prepared, steps, tokens):
    """Print what the seeds reach, and return the seconds of CPU time that one takes."""
    teacher = name if name == "ngram" else None
    found = [train(prepared, steps, teacher=teacher, seed=seed) for seed in SEEDS]
    seconds = sum(spent for _, spent in found) / len(SEEDS)
    bits = " ".join(f"{reached:.3f}" for reached, _ in found)
    print(f"{name:10} {steps * tokens / 1e6:.2f} M tokens {seconds:6.1f} s CPU  {bits}", flush=True)
    return seconds


if __name__ == "__main__":
    main()
