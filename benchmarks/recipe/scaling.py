"""Fit laws to small runs of many sizes, and show beside each run what its law expects of it.

`workflows/budget.py` chooses a size by these laws, which stand in `workflows/scaling.py`. Every run
is one of `rung train`. Its figure is the one that training watches: bits per byte of the
first 32 kB of the validation text, of the weights that are kept. Runs made before are read from
scaling.jsonl, beside this file, and not made again. Two processes of one thread each share two
cores best.

    python benchmarks/recipe/scaling.py --run CORPUS=PATH ...            # make what is missing
    python benchmarks/recipe/scaling.py --read RUN ...                   # add runs made otherwise
    python benchmarks/recipe/scaling.py > benchmarks/recipe/scaling.txt  # fit, and write it down
"""

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path

FOUND = Path(__file__).with_suffix(".jsonl")
COLUMNS = (
    *("corpus", "weights", "tokens, M", "epochs", "dropout", "minutes"),
    *("n-gram", "copying", "bits per byte", "law", "off"),
)
RUNGS = ("llama3", "gpt2", "rnn", "rnn-attention")
EXPONENTS = {"size_power": 0.34, "data_power": 0.28}
SHARED = 0.5  # of what a law is off by for all runs of a text: so much does not count
TEACHERS = {"gutenberg": "ngram"}
GRID = {  # rung, corpus, dropout: widths and millions of tokens
    ("rnn", "python-docs", 0.0): [(64, 0.5), (96, 0.6), (128, 2), (256, 2), (256, 5)],
    ("rnn", "gutenberg", 0.0): [(128, 0.5), (192, 2)],
    ("rnn-attention", "python-docs", 0.0): [(64, 0.5), (96, 0.6), (160, 1), (240, 0.6), (240, 3.3)],
    ("rnn-attention", "gutenberg", 0.0): [(128, 0.5), (160, 1), (208, 1.6)],
    ("gpt2", "python-docs", 0.0): [(64, 2), (128, 1), (128, 3.3), (160, 2), (192, 1), (192, 2.1)],
    ("gpt2", "gutenberg", 0.0): [(96, 0.8), (128, 1.2)],
    ("llama3", "python-docs", 0.0): [(64, 0.92), (64, 2.4), (128, 1.5), (160, 1.5), (160, 3.3)],
    ("llama3", "gutenberg", 0.0): [(64, 1.2), (128, 0.71), (160, 2)],
}


@functools.cache
def read_text(source):
    """How many tokens there are to train on, and what counting finds."""
    from rung.data.corpus import load_corpus
    from rung.data.tokenizer_training import suggest_vocab_size
    from rung.recipe import make_recipe
    from rung.workflows.difficulty import measure_difficulty
    from rung.workflows.prepare import CONTEXT, pack_train, prepare_tokenizer, sample_validation

    corpus = load_corpus(source, "paragraphs")
    spec = {"kind": "bpe", "vocab_size": suggest_vocab_size(corpus.bytes["train"])}
    tokenizer = prepare_tokenizer(
        make_recipe({"rung": "llama3", "corpus": source, "tokenizer": spec}), corpus
    )
    packed = pack_train(corpus, tokenizer)
    return len(packed), measure_difficulty(tokenizer, packed, sample_validation(corpus), CONTEXT)


def make_run(rung, corpus, source, dropout, width, millions):
    """Train one model on so many millions of tokens, and read what came of it."""
    from rung.data.corpus import load_corpus
    from rung.ladder import TRANSFORMER_RUNGS
    from rung.recipe import make_recipe
    from rung.workflows.budget import LAYERS, WIDTH_OF_A_LAYER
    from rung.workflows.prepare import fill_batch, fill_recipe
    from rung.workflows.train import execute

    page = {"rung": rung, "corpus": source, "dropout": dropout, "model": {"hidden_size": width}}
    # As the dial chooses layers for a width, and a teacher where little of a text is read.
    if rung in TRANSFORMER_RUNGS:
        page["model"]["num_hidden_layers"] = max(LAYERS, width // WIDTH_OF_A_LAYER)
        page["teacher"] = TEACHERS.get(corpus)
    filled = fill_recipe(fill_batch(make_recipe(page)), load_corpus(source, "paragraphs"))
    rows = filled.global_batch_size * filled.model["max_position_embeddings"]
    steps = round(millions * 1e6 / rows)
    page |= {"steps": steps, "train": {"eval_steps": steps, "save_steps": steps}}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        execute(make_recipe(page), Path(folder) / "run")
        cpu = time.process_time() - began
        return read_run(Path(folder) / "run", corpus) | {"cpu_seconds": round(cpu, 1)}


def read_run(folder, corpus=None):
    """What the law is about, of a run."""
    from rung import runs

    record = runs.read_record(folder)
    recipe, training = record["recipe"], record["training"]
    text, counted = read_text(recipe["corpus"])
    reached = [
        line["bits_per_byte"] for line in runs.read_metrics(folder) if "bits_per_byte" in line
    ]
    return {
        "rung": record["rung"],
        "corpus": corpus or Path(recipe["corpus"]).stem,
        "minutes": recipe["minutes"],
        "dropout": recipe["dropout"],
        "teacher": recipe.get("teacher"),
        "width": recipe["model"]["hidden_size"],
        "learning_rate": recipe["train"].get("learning_rate"),
        "steps": training["steps"],
        "tokens": training["tokens"],
        "parameters": record["parameters"],
        "hidden_parameters": count_hidden(folder, record["rung"]),
        "text": text,
        "ngram": round(counted.ngram, 4),
        "copying": round(counted.copying, 4),
        "bits_per_byte": round(min(reached), 4),
        "test": round(record["scores"]["test"]["bits_per_byte"], 4),
        "seconds": round(training["seconds"], 1),
        "hardware": record["hardware"],
    }


def count_hidden(folder, rung):
    import torch

    from rung.models import build_model, count_hidden_parameters, read_checked_config

    with torch.device("meta"):
        return count_hidden_parameters(build_model(rung, read_checked_config(folder)))


def read_runs():
    return [json.loads(line) for line in FOUND.read_text().splitlines()] if FOUND.exists() else []


def key_of(run):
    millions = float(f"{run['tokens'] / 1e6:.2g}")
    return run["rung"], run["corpus"], run["dropout"], run["width"], millions


def fit(runs, counts_tables=True):
    """The law of the runs by least squares of the ratio to what was expected, from several
    beginnings.

    Small runs say little about exponents: those of Hoffmann et al. 2022 (section D.3) are taken.
    """
    import torch
    from torch.nn.functional import softplus

    from rung.workflows.scaling import ScalingLaw

    starts = {"floor": 0.0, "size": -2.0, "data": -1.0, "patience": 2.0, "copying": 0.2}
    known = EXPONENTS | {"counts_tables": counts_tables}
    free = tuple(starts)
    start = torch.tensor([starts[name] for name in free])
    best = None
    for seed in range(8):
        torch.manual_seed(seed)
        raw = (start + 0.5 * torch.randn(len(free))).requires_grad_()
        search = torch.optim.LBFGS([raw], max_iter=500, line_search_fn="strong_wolfe")

        def make(raw=raw):
            return ScalingLaw(**{**known, **dict(zip(free, softplus(raw), strict=True))})

        def error(raw=raw, search=search, make=make):
            search.zero_grad()
            loss = compute_error(make(), runs)
            loss = loss + 1e-6 * (raw - start).square().sum()
            loss.backward()
            return loss

        search.step(error)
        found = error().item()
        if best is None or found < best[0]:
            best = (
                found,
                ScalingLaw(
                    **{
                        name: value
                        if isinstance(value, bool)
                        else round(float(torch.as_tensor(value).detach()), 4)
                        for name, value in vars(make()).items()
                    }
                ),
            )
    return best[1]


def compute_error(law, runs):
    """Compute the mean square of the ratio to what was expected, less one.

    Which size to choose depends on differences within a text: of what a law is off by for all runs
    of one, half counts.
    """
    ratios = [(run["corpus"], expect(law, run) / run["bits_per_byte"] - 1) for run in runs]
    total = 0.0
    for corpus in {corpus for corpus, _ in ratios}:
        off = [ratio for name, ratio in ratios if name == corpus]
        mean = sum(off) / len(off)
        total = total + sum((ratio - SHARED * mean) ** 2 for ratio in off)
    return total / len(runs)


def expect(law, run):
    from rung.workflows.difficulty import Difficulty

    counted = Difficulty(run["ngram"], run["copying"], whole=run["ngram"])
    weights = run["parameters"] if law.counts_tables else run["hidden_parameters"]
    return law(weights, run["tokens"], run["text"]) * law.reference(counted)


def law_of(runs, rung):
    """The rung's law.

    A recurrent rung is small beside its tables, which its law does not count.
    """
    mine = [run for run in runs if run["rung"] == rung]
    return fit(mine, counts_tables=not rung.startswith("rnn"))


def write(runs):
    """The runs, the laws, and how far apart they are."""
    from rung.workflows.scaling import SCALING_LAWS

    print("# What a small model learns from how many tokens\n")
    print(
        "Runs of `rung train RUNG`, in `scaling.jsonl`; written by "
        "`benchmarks/recipe/scaling.py`. The"
    )
    print(
        "laws are fitted to them; those of so many minutes have the width that the dial chose by "
        "earlier laws."
    )
    print("Bits per byte on the 32 kB of validation text that")
    print(
        "training watches, of the weights that are kept. `n-gram` is the n-gram rung on the same "
        "text, `copying` the"
    )
    print("same where matches of what stood before are believed too (`workflows/difficulty.py`).")
    machines = sorted(
        {run["hardware"] for run in runs if "hardware" in run}
    )  # old runs do not say it
    if machines:
        print(f"Runs were made on {' and on '.join(machines)}.")
    for name, laws in SCALING_LAWS.items():
        print(f"\n## {name}\n\n`{laws.law}`\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for run in sorted((run for run in runs if run["rung"] == name), key=key_of):
            expected = expect(laws.law, run)
            off = expected / run["bits_per_byte"] - 1
            print(
                f"| {run['corpus']} | {run['parameters']:,} | {run['tokens'] / 1e6:.1f} "
                f"| {run['tokens'] / run['text']:.1f} | {run['dropout']} | "
                f"{run['minutes'] or ''} "
                f"| {run['ngram']:.3f} | {run['copying']:.3f} | {run['bits_per_byte']:.3f} | "
                f"{expected:.3f} "
                f"| {off:+.1%} |"
            )


def add(run):
    with FOUND.open("a") as file:
        file.write(json.dumps(run) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", nargs="+", metavar="CORPUS=PATH", help="make the missing runs on these"
    )
    parser.add_argument("--rungs", nargs="+", default=RUNGS, help="make the missing runs of these")
    parser.add_argument("--read", nargs="+", metavar="RUN", type=Path, help="add these runs")
    parser.add_argument(
        "--fit", action="store_true", help="print the laws, for workflows/budget.py"
    )
    chosen = parser.parse_args()
    if chosen.run:
        sources = dict(pair.split("=") for pair in chosen.run)
        made = {key_of(run) for run in read_runs()}
        for (rung, corpus, dropout), sizes in GRID.items():
            for width, millions in sizes:
                key = (rung, corpus, dropout, width, float(f"{millions:.2g}"))
                if corpus in sources and rung in chosen.rungs and key not in made:
                    add(make_run(rung, corpus, sources[corpus], dropout, width, millions))
    elif chosen.read:
        for folder in chosen.read:
            add(read_run(folder))
    elif chosen.fit:
        for rung in RUNGS:
            print(rung, law_of(read_runs(), rung))
    else:
        write(read_runs())


if __name__ == "__main__":
    main()
