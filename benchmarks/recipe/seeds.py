"""Climb with three seeds, to see whether the ladder is one whatever the seed.

Bits per byte of the test text by rung and seed, their mean and standard deviation. `--climbs` are
folders of finished climbs, of any corpora and machines, which are then read and none is made.

    python benchmarks/recipe/seeds.py [CORPUS] [--climbs FOLDER ...] > benchmarks/recipe/seeds.txt
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from rung import runs
from rung.ladder import LADDER

SEEDS = (0, 1, 2)


def climb(corpus, folder):
    """Climb once with each seed, and return the folders."""
    folders = [Path(folder) / str(seed) for seed in SEEDS]
    for seed, out in zip(SEEDS, folders, strict=True):
        command = ["climb", corpus, "--seed", str(seed), "--out", str(out)]
        subprocess.run([sys.executable, "-m", "rung", *command], check=True, stdout=sys.stderr)
    return folders


def read_climbs(folders):
    """Read bits per byte by corpus and machine, then rung, then seed."""
    found = defaultdict(lambda: defaultdict(dict))
    for path in sorted(path for folder in folders for path in folder.glob("*/rung.json")):
        record = runs.read_record(path.parent)
        scores = found[Path(record["recipe"]["corpus"]).name, record["hardware"]][record["rung"]]
        scores[record["recipe"]["seed"]] = record["scores"]["test"]["bits_per_byte"]
    return found


def show(place, by_rung):
    """Print a table of the rungs."""
    seeds = sorted({seed for scores in by_rung.values() for seed in scores})
    print(f"{place[0]}, {place[1]}")
    print(f"{'rung':13}", *(f"{f'seed {seed}':>7}" for seed in seeds), "   mean  deviation")
    for rung in sorted(by_rung, key=LADDER.index):
        each = [by_rung[rung][seed] for seed in seeds]
        spread = statistics.stdev(each) if len(each) > 1 else 0.0
        bits = " ".join(f"{value:7.3f}" for value in each)
        print(f"{rung:13} {bits} {statistics.mean(each):7.3f} {spread:10.3f}")
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", nargs="?", default="python-docs")
    parser.add_argument("--climbs", nargs="*", default=[], metavar="FOLDER", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = read_climbs(chosen.climbs or climb(chosen.corpus, folder))
    for place, by_rung in found.items():
        show(place, by_rung)


if __name__ == "__main__":
    main()
