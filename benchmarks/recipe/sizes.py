"""Train one rung at several widths, the same minutes each, to see which size learns most.

Without arguments it is llama3, 75 seconds at each of five widths.

    python benchmarks/recipe/sizes.py [MINUTES] [RUNG] [WIDTH ...] > benchmarks/recipe/sizes.txt
"""

import sys
import tempfile
from pathlib import Path

from rung import runs
from rung.device import choose_device, describe_device
from rung.recipe import make_recipe
from rung.workflows.train import execute


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.25
    rung = sys.argv[2] if len(sys.argv) > 2 else "llama3"
    widths = [int(width) for width in sys.argv[3:]] or [96, 128, 160, 192, 256]
    print(f"{rung} on python-docs, {minutes} minutes each; {describe_device(choose_device())}")
    for width in widths:
        with tempfile.TemporaryDirectory() as folder:
            page = {"rung": rung, "minutes": minutes, "model": {"hidden_size": width}}
            execute(make_recipe(page), Path(folder) / "run")
            record = runs.read_record(Path(folder) / "run")
        score, training = record["scores"]["test"], record["training"]
        print(
            f"width {width:4}  {record['parameters']:>9,} parameters  {training['steps']:>6,} "
            f"steps  "
            f"{training['tokens_per_second']:>8,.0f} tokens/s  {score['bits_per_byte']:.3f} bits "
            f"per byte"
            f" ({score['low']:.2f}-{score['high']:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
