"""Compare ways to go on from a trained model: all its weights beside a change of low rank.

Each way is tried with several optimizers and learning rates. A Llama is trained on python-docs, and
then in each way for as many steps on TEXT (any corpus that `rung train` takes). Bits per byte of
both texts say what it learned and what it still knows.

    python benchmarks/training/adapters.py [TEXT [STEPS]] > benchmarks/training/adapters.txt
"""

import sys
import tempfile
from pathlib import Path

import torch

from rung import runs
from rung.data.corpus import load_corpus
from rung.device import describe_device
from rung.evaluation.score import score_documents
from rung.models import load
from rung.recipe import make_recipe
from rung.workflows.train import execute

BASE = {"rung": "llama3", "model": {"hidden_size": 128, "num_hidden_layers": 4}}
WAYS = [
    ("all, from random weights", None, {}),
    ("all", None, {"learning_rate": 6e-3}),
    ("all", None, {"learning_rate": 2e-3}),
    ("all, AdamW", None, {"learning_rate": 1e-3, "optim": "adamw_torch_fused"}),
    ("rank 8, AdamW", 8, {"learning_rate": 1e-3}),
    ("rank 8, AdamW", 8, {"learning_rate": 2e-3}),
    ("rank 8, AdamW", 8, {"learning_rate": 5e-3}),
    ("rank 8, AdamW", 8, {"learning_rate": 1e-2}),
    ("rank 8, Muon", 8, {"learning_rate": 2e-3, "optim": "muon"}),
    ("rank 8, Muon", 8, {"learning_rate": 6e-3, "optim": "muon"}),
    ("rank 8, Muon", 8, {"learning_rate": 2e-2, "optim": "muon"}),
    ("rank 32, AdamW", 32, {"learning_rate": 5e-3}),
]


def main():
    text = sys.argv[1] if len(sys.argv) > 1 else "python-source"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    name = Path(text).name
    machine = f"{describe_device(torch.device('cpu'))}, {torch.get_num_threads()} used; one seed"
    print(f"$ python benchmarks/training/adapters.py {name} {steps}          # {machine}")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        execute(make_recipe(BASE | {"steps": 2 * steps}), base)
        print(
            f"llama3 on python-docs, {2 * steps} steps of 2048 tokens; then {steps} on {name}; "
            f"bits per byte, test text"
        )
        print(f"{'trained':>25}  {'rate':>6}  {'parameters':>10}  {name:>15}  {'python-docs':>11}")
        show("nothing, as it is", "", base, text)
        for number, (way, rank, train) in enumerate(WAYS):
            run = Path(folder) / str(number)
            page = {
                "rung": "llama3",
                "corpus": text,
                "steps": steps,
                "train": train,
                "lora": rank,
                "base": str(base),
            }
            if "random" in way:
                page |= {"base": None, "model": BASE["model"], "tokenizer": {"path": str(base)}}
            execute(make_recipe(page), run)
            show(way, train.get("learning_rate", ""), run, text)


def show(way, rate, run, text):
    facts = runs.read_record(run)["training"]
    learned, kept = (
        score_documents(*load(run), load_corpus(c).test["text"]) for c in (text, "python-docs")
    )
    print(
        f"{way:>25}  {rate:>6}  {facts['trainable_parameters']:>10,}  "
        f"{learned.bits_per_byte:>15.3f}  {kept.bits_per_byte:>11.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
