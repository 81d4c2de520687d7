"""Small runs of many sizes, and the laws fitted to them that the dial (recipe/dial.py) chooses by.

Each run reads blocks of 128 tokens, 16 a step, and is scored on 100 kB of validation text. Runs made before are read
from docs/results/scaling.jsonl and not made again; two processes of one thread each share two cores best.

python benchmarks/scaling.py --run CORPUS=PATH ...      # make what is missing
python benchmarks/scaling.py > docs/results/scaling.md  # fit, and write it down
"""

import argparse
import functools
import json
import time
from pathlib import Path

FOUND = Path(__file__).parents[1] / "docs" / "results" / "scaling.jsonl"
EXPONENTS = {"size_power": 0.34, "data_power": 0.28}
LENGTH, ROWS, JUDGED_BYTES = 128, 16, 100_000
WITHOUT = [(64, 0.6), (128, 0.6), (224, 0.6), (64, 2.4), (128, 2.4), (224, 2.4), (64, 5.0), (128, 5.0)]
GRID = {  # rung, corpus, dropout: widths and millions of tokens
    ("llama3", "python-docs", 0.0): WITHOUT,
    ("llama3", "python-docs", 0.1): [(128, 5.0)],
    ("llama3", "python-docs", 0.15): [(224, 2.4)],
    ("llama3", "gutenberg", 0.0): [(128, 0.6), (64, 2.4), (128, 2.4)],
    ("llama3", "shakespeare", 0.1): [(64, 2.4), (128, 5.0)],
    ("rnn-attention", "python-docs", 0.0): [(192, 2.4)],
    ("gpt2", "python-docs", 0.0): [(128, 1.2)],
}


@functools.cache
def read_text(name, source):
    """Tokenizer, packed tokens, judged texts, and the bits per byte of the n-gram rung on them."""
    from rung.corpus import load_corpus
    from rung.evaluate import first_texts, score_documents
    from rung.recipe import make_recipe
    from rung.recipe.dial import count_text
    from rung.recipe.text import pack_train, prepare_tokenizer
    from rung.tokenizer import suggest_vocab_size

    corpus = load_corpus(source, "paragraphs")
    spec = {"kind": "bpe", "vocab_size": suggest_vocab_size(corpus.bytes["train"])}
    tokenizer = prepare_tokenizer(make_recipe({"rung": "llama3", "corpus": source, "tokenizer": spec}), corpus)
    packed = pack_train(corpus, tokenizer)
    judged = first_texts(corpus.validation["text"], JUDGED_BYTES)
    judge = lambda model: score_documents(model, tokenizer, judged).bits_per_byte  # noqa: E731
    return tokenizer, packed, judge, count_text(tokenizer, packed, judge)


def make_run(rung, corpus, source, dropout, width, millions):
    """Train one model for so many million tokens, and score it."""
    import tempfile

    import torch

    from rung.models import build_model, count_parameters, make_config
    from rung.train import Hooks, TrainSettings, train

    tokenizer, packed, judge, counted = read_text(corpus, source)
    torch.manual_seed(0)
    layers = {} if rung.startswith("rnn") else {"num_hidden_layers": 4}
    config = make_config(rung, tokenizer, {"hidden_size": width, "max_position_embeddings": LENGTH, **layers})
    model = build_model(rung, config)
    steps = round(millions * 1e6 / (ROWS * LENGTH))
    settings = TrainSettings(
        steps=steps,
        dropout=dropout,
        arguments={"per_device_train_batch_size": ROWS, "eval_strategy": "no", "save_strategy": "no"},
    )
    hooks = Hooks(evaluate=judge, sample=lambda model: "", progress=lambda progress: None)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(model, tokenizer, packed, Path(folder), settings, hooks)
    return {
        "rung": rung,
        "corpus": corpus,
        "dropout": dropout,
        "width": width,
        "millions": millions,
        "parameters": count_parameters(model),
        "text": len(packed),
        "ngram": round(counted, 4),
        "bits_per_byte": round(judge(model.eval()), 4),
        "seconds": round(time.perf_counter() - started, 1),
    }


def read_runs():
    return [json.loads(line) for line in FOUND.read_text().splitlines()] if FOUND.exists() else []


def key_of(run):
    return run["rung"], run["corpus"], run["dropout"], run["width"], run["millions"]


def fit(runs, fixed=None):
    """The law of the runs by least squares of the ratio to the n-gram model, from several beginnings.

    Small runs say little about exponents: those of Hoffmann et al. 2022 (section D.3) are taken. With dropout there
    are few runs: of the law without (`fixed`) only what data are worth is fitted anew.
    """
    import torch
    from torch.nn.functional import softplus

    from rung.recipe.dial import Law

    starts = {"floor": 0.0, "size": -2.0, "data": -1.0, "patience": 2.0}
    known = vars(fixed) if fixed else EXPONENTS
    free = ("data", "patience") if fixed else tuple(starts)
    start = torch.tensor([starts[name] for name in free])
    best = None
    for seed in range(8):
        torch.manual_seed(seed)
        raw = (start + 0.5 * torch.randn(len(free))).requires_grad_()
        search = torch.optim.LBFGS([raw], max_iter=500, line_search_fn="strong_wolfe")

        def make(raw=raw):
            return Law(**{**known, **dict(zip(free, softplus(raw), strict=True))})

        def error(raw=raw, search=search, make=make):
            search.zero_grad()
            ratios = [(expect(make(), run) / run["ngram"] - run["bits_per_byte"] / run["ngram"]) ** 2 for run in runs]
            loss = sum(ratios) / len(ratios) + 1e-6 * (raw - start).square().sum()
            loss.backward()
            return loss

        search.step(error)
        found = error().item()
        if best is None or found < best[0]:
            best = (found, Law(**{name: round(float(value), 4) for name, value in vars(make()).items()}))
    return best[1]


def expect(law, run):
    return law(run["parameters"], run["millions"] * 1e6, run["text"]) * run["ngram"]


def laws_of(runs):
    """Of Llama: without dropout, from the runs that do not overfit, and with it."""
    from rung.recipe.dial import OVERFITTING

    runs = [run for run in runs if run["rung"] == "llama3"]
    rested = [r for r in runs if not r["dropout"] and r["millions"] * 1e6 <= OVERFITTING * r["text"]]
    plain = fit(rested)
    return {False: plain, True: fit([run for run in runs if run["dropout"]], plain)}


def write(runs):
    """The runs, the laws, and how far apart they are."""
    from rung.recipe.dial import LAWS

    print("# What a small model learns from how many tokens\n")
    print("Written by `benchmarks/scaling.py`; the runs are in `scaling.jsonl`. Bits per byte on 100 kB of validation")
    print("text, blocks of 128 tokens, 16 a step, the default optimizer; `n-gram` is the n-gram rung on the same text.")
    print("Runs with `made_by` are of `rung train llama3 --minutes 5`, on the 32 kB that training watches; the others")
    print("were made with these settings in a loop without the Trainer. Dropout is 0.1 where the dial chooses it.")
    for name, laws in LAWS.items():
        for with_dropout, law in laws.items():
            mine = [run for run in runs if run["rung"] == name and (run["dropout"] > 0) == with_dropout]
            print(f"\n## {name}, {'with' if with_dropout else 'without'} dropout\n\n`{law}`\n")
            print("| corpus | weights | tokens, M | epochs | dropout | n-gram | bits per byte | law | off |")
            print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
            for run in sorted(mine, key=key_of):
                expected = expect(law, run)
                off = expected / run["bits_per_byte"] - 1
                print(
                    f"| {run['corpus']} | {run['parameters']:,} | {run['millions']} "
                    f"| {run['millions'] * 1e6 / run['text']:.1f} | {run['dropout']} | {run['ngram']:.3f} "
                    f"| {run['bits_per_byte']:.3f} | {expected:.3f} | {off:+.1%} |"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs="+", metavar="CORPUS=PATH", help="make the missing runs on these")
    parser.add_argument("--fit", action="store_true", help="print the laws, for recipe/dial.py")
    chosen = parser.parse_args()
    if chosen.run:
        sources = dict(pair.split("=") for pair in chosen.run)
        made = {key_of(run) for run in read_runs()}
        for (rung, corpus, dropout), sizes in GRID.items():
            for width, millions in sizes:
                if corpus in sources and (rung, corpus, dropout, width, millions) not in made:
                    run = make_run(rung, corpus, sources[corpus], dropout, width, millions)
                    with FOUND.open("a") as file:
                        file.write(json.dumps(run) + "\n")
    elif chosen.fit:
        for with_dropout, law in laws_of(read_runs()).items():
            print(with_dropout, law)
    else:
        write(read_runs())


if __name__ == "__main__":
    main()
