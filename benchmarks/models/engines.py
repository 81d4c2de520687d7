"""Measure the time and the peak memory of counting n-grams: numpy in memory beside DuckDB on disk.

TEXT is a folder of .txt. It is counted ten times over, its words numbered anew each time, so that
no two copies share an n-gram. Memory is what no file stands behind (RssAnon of Linux), the model
included; the system can take back pages of mapped files at any time.

    python benchmarks/models/engines.py TEXT > benchmarks/models/engines.txt
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy
from ngram import ORDER, read_lines

from rung.data.tokenizer import encode_documents
from rung.data.tokenizer_training import build_tokenizer
from rung.device import choose_device, describe_device, retain_freed_memory
from rung.models.ngram.counting_settings import CountingSettings
from rung.models.ngram.engines import choose_count_function
from rung.models.ngram.model import NgramConfig, NgramForCausalLM

ENGINES = (("numpy", ""), ("duckdb", "2GB"))
COPIES = 10
SPECIAL = 3  # the first ids stay what they are


def write_text(text: Path, folder: Path) -> int:
    """The copies, as token ids on disk; the size of the vocabulary."""
    lines = read_lines(text, 30 * 10**6)
    tokenizer = build_tokenizer("whitespace", lines)
    rows = [numpy.array(row, dtype=numpy.uint32) for row in encode_documents(lines, tokenizer)]
    tokens, starts = numpy.concatenate(rows), numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    generator, size = numpy.random.default_rng(0), len(tokenizer)
    with (folder / "tokens.bin").open("wb") as file:
        for _ in range(COPIES):
            number = numpy.concatenate(
                [numpy.arange(SPECIAL), SPECIAL + generator.permutation(size - SPECIAL)]
            )
            file.write(number[tokens].astype(numpy.uint32).tobytes())
    numpy.save(
        folder / "starts.npy", numpy.concatenate([starts + i * len(tokens) for i in range(COPIES)])
    )
    return size


def anonymous_memory() -> float:
    """Gigabytes of this process that no file stands behind."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 2**20


def count(folder: Path, vocab_size: int, engine: str, memory: str) -> None:
    """Fit once, and print a line."""
    if engine == "numpy":
        retain_freed_memory()
    tokens = numpy.memmap(folder / "tokens.bin", dtype=numpy.uint32, mode="r")
    starts = numpy.load(folder / "starts.npy")
    peak = [anonymous_memory()]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], anonymous_memory())
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    config = NgramConfig(
        vocab_size=vocab_size, order=ORDER, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    counter = choose_count_function(
        CountingSettings(engine=engine, memory=memory or None), folder / "counting"
    )
    before = time.perf_counter()
    model = NgramForCausalLM.fit(config, tokens, starts, counter)
    seconds = time.perf_counter() - before
    size = (
        sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) / 2**30
    )
    ngrams = sum(model.config.num_ngrams)
    print(
        f"{engine:<8}{memory:>8}{len(tokens):>14,}{ngrams:>14,}{seconds:>10.1f}{peak[0]:>10.2f}{size:>10.2f}",
        flush=True,
    )


def main() -> None:
    """Print the table, each line from a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        count(chosen.text, int(chosen.one[0]), chosen.one[1], chosen.one[2])
        return
    print(f"Kneser-Ney of order {ORDER}: {describe_device(choose_device())}\n")
    print("engine    memory        tokens       n-grams   fit (s)   peak GB  model GB", flush=True)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        size = write_text(chosen.text, Path(folder))
        for engine, memory in ENGINES:
            subprocess.run(
                [sys.executable, __file__, folder, "--one", str(size), engine, memory], check=True
            )


if __name__ == "__main__":
    main()
