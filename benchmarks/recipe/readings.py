"""Show what dropout and weight decay are worth to runs that read their text again and again.

Each line is a run of `rung train RUNG CORPUS --minutes N`, with `--set dropout=...` and
`--set train.weight_decay=...` where they are not those that the minutes choose. `val` is bits per
byte of the validation text that training watches, of the weights that are kept; `test` is those of
the test text.

    python benchmarks/recipe/readings.py RUN ... > benchmarks/recipe/readings.txt
"""

import sys
from pathlib import Path

HEADS = ("minutes", "weights", "tokens", "epochs", "dropout", "decay", "val", "test")


def show(record):
    """Return what stands in the line of a run."""
    from rung.training.arguments import DEFAULT_ARGUMENTS

    recipe, training, plan = record["recipe"], record["training"], record["plan"]
    decay = (DEFAULT_ARGUMENTS | recipe["train"])["weight_decay"]
    cells = (
        f"{recipe['minutes']:g}",
        f"{record['parameters'] / 1e6:.2f} M",
        f"{training['tokens'] / 1e6:.1f} M",
        f"{training['tokens'] / plan['tokens'] * plan['epochs']:.1f}",
        f"{recipe['dropout']:g}",
        f"{decay:g}",
        f"{plan['reached']:.3f}",
        f"{record['scores']['test']['bits_per_byte']:.3f}",
    )
    return f"{record['rung']:14}" + "".join(f"{cell:>9}" for cell in cells)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    from rung import runs

    records = [runs.read_record(Path(name)) for name in sys.argv[1:]]
    corpora = sorted({Path(record["recipe"]["corpus"]).name for record in records})
    machines = sorted({record["hardware"] for record in records})
    print(f"{', '.join(corpora)}; {', '.join(machines)}")
    print(f"{'':14}" + "".join(f"{head:>9}" for head in HEADS))
    for record in records:
        print(show(record))


if __name__ == "__main__":
    main()
