"""Fit laws to small runs of many sizes, and show beside each run what its law expects of it.

`workflows/budget.py` chooses a size by these laws, which stand in `workflows/scaling.py`. Every run
is one of `rung train llama3`. Its figure is the one that training watches: bits per byte of the
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
import subprocess
import sys
import tempfile
from pathlib import Path

FOUND = Path(__file__).with_suffix(".jsonl")
COLUMNS = (
    *("corpus", "weights", "tokens, M", "epochs", "dropout", "minutes"),
    *("n-gram", "copying", "bits per byte", "law", "off"),
)
EXPONENTS = {"size_power": 0.34, "data_power": 0.28}
GRID = {  # corpus, dropout: widths and steps
    ("python-docs", 0.0): [(64, 1200), (128, 2400), (192, 1200)],
    ("python-docs", 0.1): [(128, 2400)],
    ("shakespeare", 0.0): [(64, 1200), (128, 1200)],
    ("shakespeare", 0.1): [(128, 2700), (192, 1500)],
    ("shakespeare", 0.2): [(128, 2700)],
    ("gutenberg", 0.0): [(64, 1200), (128, 2000), (192, 1200)],
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


def make_run(corpus, source, dropout, width, steps):
    """Train one model, and read what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            "--set",
            f"hidden_size={width}",
            "--set",
            f"dropout={dropout}",
            "--out",
            f"{folder}/run",
        ]
        command = [
            sys.executable,
            "-m",
            "rung",
            "train",
            "llama3",
            source,
            "--steps",
            str(steps),
            *settings,
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return read_run(Path(folder) / "run", corpus)


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
        "width": recipe["model"]["hidden_size"],
        "steps": training["steps"],
        "tokens": training["tokens"],
        "parameters": record["parameters"],
        "text": text,
        "ngram": round(counted.ngram, 4),
        "copying": round(counted.copying, 4),
        "bits_per_byte": round(min(reached), 4),
        "test": round(record["scores"]["test"]["bits_per_byte"], 4),
        "seconds": round(training["seconds"], 1),
        "hardware": record["hardware"],
    }


def read_runs():
    return [json.loads(line) for line in FOUND.read_text().splitlines()] if FOUND.exists() else []


def key_of(run):
    return run["corpus"], run["dropout"], run["width"], run["steps"]


def fit(runs, fixed=None):
    """The law of the runs by least squares of the ratio to what was expected, from several
    beginnings.

    Small runs say little about exponents: those of Hoffmann et al. 2022 (section D.3) are taken.
    With dropout there are few runs: of the law without (`fixed`) only what data are worth is fitted
    anew.
    """
    import torch
    from torch.nn.functional import softplus

    from rung.workflows.scaling import ScalingLaw

    starts = {"floor": 0.0, "size": -2.0, "data": -1.0, "patience": 2.0, "copying": 0.2}
    known = vars(fixed) if fixed else EXPONENTS
    free = ("data", "patience") if fixed else tuple(starts)
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
            loss = sum((expect(make(), run) / run["bits_per_byte"] - 1) ** 2 for run in runs) / len(
                runs
            )
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
                        name: round(float(torch.as_tensor(value).detach()), 4)
                        for name, value in vars(make()).items()
                    }
                ),
            )
    return best[1]


def expect(law, run):
    from rung.workflows.difficulty import Difficulty

    counted = Difficulty(run["ngram"], run["copying"])
    return law(run["parameters"], run["tokens"], run["text"]) * law.reference(counted)


def laws_of(runs):
    """Without dropout and with it; runs of so many minutes are what the laws are tried by."""
    runs = [run for run in runs if not run["minutes"]]
    plain = fit([run for run in runs if not run["dropout"]])
    return {False: plain, True: fit([run for run in runs if run["dropout"]], plain)}


def write(runs):
    """The runs, the laws, and how far apart they are."""
    from rung.workflows.scaling import SCALING_LAWS

    print("# What a small model learns from how many tokens\n")
    print(
        "Runs of `rung train llama3`, in `scaling.jsonl`; written by "
        "`benchmarks/recipe/scaling.py`. The"
    )
    print(
        "laws are fitted to those of so many steps; those of so many minutes, planned by the dial "
        "with these laws,"
    )
    print("try them. Bits per byte on the 32 kB of validation text that")
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
        for with_dropout, law in enumerate((laws.without_dropout, laws.with_dropout)):
            if law is None:
                continue
            mine = [
                run for run in runs if run["rung"] == name and (run["dropout"] > 0) == with_dropout
            ]
            print(f"\n## {name}, {'with' if with_dropout else 'without'} dropout\n\n`{law}`\n")
            print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
            for run in sorted(mine, key=key_of):
                expected = expect(law, run)
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
    parser.add_argument("--read", nargs="+", metavar="RUN", type=Path, help="add these runs")
    parser.add_argument(
        "--fit", action="store_true", help="print the laws, for workflows/budget.py"
    )
    chosen = parser.parse_args()
    if chosen.run:
        sources = dict(pair.split("=") for pair in chosen.run)
        made = {key_of(run) for run in read_runs()}
        for (corpus, dropout), sizes in GRID.items():
            for width, steps in sizes:
                if corpus in sources and (corpus, dropout, width, steps) not in made:
                    add(make_run(corpus, sources[corpus], dropout, width, steps))
    elif chosen.read:
        for folder in chosen.read:
            add(read_run(folder))
    elif chosen.fit:
        for with_dropout, law in laws_of(read_runs()).items():
            print(with_dropout, law)
    else:
        write(read_runs())


if __name__ == "__main__":
    main()
