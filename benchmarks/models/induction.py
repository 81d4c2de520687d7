"""Train Llama with and without the induction heads of its start, and compare bits per byte.

The heads are those of `models/induction.py`. The runs of a pair differ in nothing else; there is a
pair for each corpus and seed.

    python benchmarks/models/induction.py [CORPUS ...] > benchmarks/models/induction.txt
"""

import argparse
import tempfile
from pathlib import Path

WIDTH, STEPS, SEEDS = 128, 600, (0, 1)


def make_run(corpus, seed, folder):
    """Bits per byte of the watched text at each evaluation, and of the test text at the end."""
    from rung import runs
    from rung.recipe import make_recipe
    from rung.workflows.train import execute

    page = {
        "rung": "llama3",
        "corpus": corpus,
        "steps": STEPS,
        "seed": seed,
        "model": {"hidden_size": WIDTH},
    }
    execute(make_recipe(page), folder)
    watched = {
        line["tokens"]: line["bits_per_byte"]
        for line in runs.read_metrics(folder)
        if "bits_per_byte" in line
    }
    return watched, runs.read_record(folder)["scores"]["test"]["bits_per_byte"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "corpora", nargs="*", metavar="CORPUS", default=["python-docs", "python-source"]
    )
    corpora = parser.parse_args().corpora
    from rung.device import choose_device, describe_device
    from rung.models import llama3

    circuit = llama3.add_induction_circuit
    print(describe_device(choose_device()))
    print(
        f"llama3, {WIDTH} wide, {STEPS} steps: bits per byte of validation text as it learns, and "
        f"of the test text"
    )
    for corpus in corpora:
        for seed in SEEDS:
            for name, add in (("without", lambda *_: None), ("with", circuit)):
                llama3.add_induction_circuit = add
                with tempfile.TemporaryDirectory() as folder:
                    watched, test = make_run(corpus, seed, Path(folder) / "run")
                learned = "  ".join(
                    f"{tokens / 1e6:.2f} M: {bits:.3f}" for tokens, bits in watched.items()
                )
                print(
                    f"{Path(corpus).stem:12} seed {seed} {name:8} {learned}   test {test:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
