"""What the heads are worth that Llama begins to copy with (models/copying.py): the same runs with them and without.

python benchmarks/models/copying.py python-docs TEXT ... > benchmarks/models/copying.txt
"""

import argparse
import tempfile
from pathlib import Path

WIDTH, STEPS, SEEDS = 128, 600, (0, 1)


def make_run(corpus, seed, folder):
    """Bits per byte of the watched text at each evaluation, and of the test text at the end."""
    from rung import runs
    from rung.recipe import make_recipe
    from rung.recipe.making import execute

    page = {"rung": "llama3", "corpus": corpus, "steps": STEPS, "seed": seed, "model": {"hidden_size": WIDTH}}
    execute(make_recipe(page), folder)
    watched = {line["tokens"]: line["bits_per_byte"] for line in runs.read_metrics(folder) if "bits_per_byte" in line}
    return watched, runs.read_record(folder)["scores"]["test"]["bits_per_byte"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+", metavar="CORPUS")
    corpora = parser.parse_args().corpora
    from rung.models import llama3

    begin = llama3.begin_to_copy
    print(f"llama3, {WIDTH} wide, {STEPS} steps: bits per byte of validation text as it learns, and of the test text")
    for corpus in corpora:
        for seed in SEEDS:
            for name, copying in (("without", lambda *_: None), ("with", begin)):
                llama3.begin_to_copy = copying
                with tempfile.TemporaryDirectory() as folder:
                    watched, test = make_run(corpus, seed, Path(folder) / "run")
                learned = "  ".join(f"{tokens / 1e6:.2f} M: {bits:.3f}" for tokens, bits in watched.items())
                print(f"{Path(corpus).stem:12} seed {seed} {name:8} {learned}   test {test:.3f}", flush=True)


if __name__ == "__main__":
    main()
