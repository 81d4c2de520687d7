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
DEFAULT_DECAY = 0.1


def read_run(folder):
    """Return the rung of a run, and what stands in its line."""
    from rung import runs

    record = runs.read_record(folder)
    recipe, training = record["recipe"], record["training"]
    plan = record["plan"]
    reached = [
        line["bits_per_byte"] for line in runs.read_metrics(folder) if "bits_per_byte" in line
    ]
    text = plan["tokens"] / plan["epochs"]
    return record["rung"], (
        f"{recipe['minutes']:g}",
        f"{record['parameters'] / 1e6:.2f} M",
        f"{training['tokens'] / 1e6:.1f} M",
        f"{training['tokens'] / text:.1f}",
        f"{recipe['dropout']:g}",
        f"{recipe['train'].get('weight_decay', DEFAULT_DECAY):g}",
        f"{min(reached):.3f}",
        f"{record['scores']['test']['bits_per_byte']:.3f}",
    )


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    from rung import runs

    folders = [Path(name) for name in sys.argv[1:]]
    records = [runs.read_record(folder) for folder in folders]
    corpora = sorted({Path(record["recipe"]["corpus"]).name for record in records})
    machines = sorted({record["hardware"] for record in records})
    print(f"{', '.join(corpora)}; {', '.join(machines)}")
    print(f"{'':14}" + "".join(f"{head:>9}" for head in HEADS))
    for folder in folders:
        rung, cells = read_run(folder)
        print(f"{rung:14}" + "".join(f"{cell:>9}" for cell in cells))


if __name__ == "__main__":
    main()
