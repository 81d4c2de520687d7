"""Show what size, dropout and weight decay are worth to runs that read their text again and again.

Each line is a run of `rung train RUNG CORPUS --minutes N`, with `--set dropout=...` and
`--set train.weight_decay=...` where they are not those that the minutes choose, or with `--steps N`
and `--set hidden_size=...`. `val` is bits per byte of the validation text that training watches, of
the weights that are kept; `test` is those of the test text. Texts by the name of t60.txt are the
beginning of Shakespeare: `head -c 60000 shakespeare.txt > t60.txt`. The runs on python-docs were
made when every epoch cut the text into the same blocks.

    python benchmarks/recipe/readings.py RUN ... > benchmarks/recipe/readings.txt
"""

import itertools
import sys
from pathlib import Path

HEADS = ("minutes", "weights", "tokens", "epochs", "dropout", "decay", "val", "test")


def count_text(folder, record):
    """Count the tokens that the run had to train on."""
    from rung.data.corpus import load_corpus
    from rung.data.tokenizer_loading import load_tokenizer
    from rung.workflows.prepare import pack_train

    recipe = record["recipe"]
    paths = record["corpus"].get("paths", [recipe["corpus"]])
    corpus = load_corpus(paths[0], recipe["documents"])
    return len(pack_train(corpus, load_tokenizer(str(folder))))


def show(folder, record, text):
    """Return what stands in the line of a run."""
    from rung import runs
    from rung.training.arguments import DEFAULT_ARGUMENTS

    recipe, training = record["recipe"], record["training"]
    lines = [line for line in runs.read_metrics(folder) if "bits_per_byte" in line]
    cells = (
        f"{recipe['minutes']:g}" if recipe["minutes"] else "",
        f"{record['parameters'] / 1e6:.2f} M",
        f"{training['tokens'] / 1e6:.1f} M",
        f"{training['tokens'] / text:.1f}",
        f"{recipe['dropout']:g}",
        f"{(DEFAULT_ARGUMENTS | recipe['train'])['weight_decay']:g}",
        f"{min(line['bits_per_byte'] for line in lines):.3f}",
        f"{record['scores']['test']['bits_per_byte']:.3f}",
    )
    return f"{record['rung']:14}" + "".join(f"{cell:>9}" for cell in cells)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    from rung import runs

    found = [(Path(name), runs.read_record(Path(name))) for name in sys.argv[1:]]
    for name, group in itertools.groupby(found, lambda each: each[1]["corpus"]["name"]):
        made = list(group)
        text = count_text(*made[0])
        machines = sorted({record["hardware"] for _, record in made})
        print(f"\n{name}, {text:,} tokens of training text; {', '.join(machines)}")
        print(f"{'':14}" + "".join(f"{head:>9}" for head in HEADS))
        for folder, record in made:
            print(show(folder, record, text))


if __name__ == "__main__":
    main()
