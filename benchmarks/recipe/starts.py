"""Train the rungs from each start on as many tokens, to see what each is worth.

Bits per byte of the validation text that training watches: before the first step, and at the end.

    python benchmarks/recipe/starts.py [CORPUS] [WIDTH] > benchmarks/recipe/starts.txt
"""

import sys
import tempfile
from pathlib import Path

from rung import runs
from rung.device import choose_device, describe_device
from rung.evaluation.score import score_documents
from rung.models import build_model, make_config
from rung.models.starts import RANDOM, find_rung, start_model
from rung.progress import ignore_progress
from rung.recipe import make_recipe
from rung.training.clock import now
from rung.workflows.prepare import prepare, sample_validation
from rung.workflows.train import execute

MILLIONS, SEEDS = 0.4, (0, 1)


def score_start(recipe, prepared):
    """Score the model before its first step."""
    config = make_config(recipe.rung, prepared.tokenizer, prepared.recipe.model)
    model, packed = build_model(recipe.rung, config), prepared.packed
    start_model(model, recipe.rung, recipe.start, packed.tokens, packed.starts)
    texts = sample_validation(prepared.corpus)
    return score_documents(model.eval(), prepared.tokenizer, texts).bits_per_byte


def main():
    corpus = sys.argv[1] if len(sys.argv) > 1 else "python-docs"
    width = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    machine = describe_device(choose_device())
    print(f"{width} wide, on {Path(corpus).name}, {MILLIONS} M tokens, seeds {SEEDS}; {machine}")
    for rung in ("rnn", "rnn-attention", "gpt2", "llama3"):
        for start in (RANDOM, *find_rung(rung).starts):
            page = {"rung": rung, "corpus": corpus, "start": start}
            page |= {"model": {"hidden_size": width}}
            with tempfile.TemporaryDirectory() as folder:
                recipe = make_recipe({**page, "steps": 1})
                prepared = prepare(recipe, Path(folder) / "run", ignore_progress, now())
                print(f"{rung:14} {start:10} before {score_start(recipe, prepared):.3f}", end="")
            tokens = prepared.recipe.model["max_position_embeddings"]
            tokens *= prepared.recipe.global_batch_size
            ends = [train(page, round(MILLIONS * 1e6 / tokens), seed) for seed in SEEDS]
            print("   after", *(f"{bits:.3f}" for bits in ends), flush=True)


def train(page, steps, seed):
    """Return what a run of so many steps reaches."""
    page = {**page, "steps": steps, "seed": seed, "train": {"eval_steps": steps}}
    page["train"]["save_steps"] = steps
    with tempfile.TemporaryDirectory() as folder:
        execute(make_recipe(page), Path(folder) / "run")
        lines = runs.read_metrics(Path(folder) / "run")
        return min(line["bits_per_byte"] for line in lines if "bits_per_byte" in line)


if __name__ == "__main__":
    main()
