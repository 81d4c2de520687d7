"""Measure the way from a text file to a saved model that answers, beside KenLM, in words and BPE.

TEXT is a file or a folder of .txt, cut to 30 MB; words and punctuation are apart, and a line is a
document. Every step is a process of its own: seconds, CPU seconds, and peak memory are what the
system counts of it. Ours reads the file, trains a tokenizer, encodes, counts, saves, loads what it
saved and scores the first lines; `work` leaves out Python's start and its imports. KenLM's `lmplz`
writes an ARPA file, of which `build_binary` makes what `query` answers from, or its own binary
files. For byte pairs KenLM is given the ids as words; `tokenizers` makes them, as a user would.

`lmplz` is found on the PATH, or where --lmplz says; `build_binary` and `query` lie beside it.

    python benchmarks/models/text_to_ngrams.py TEXT > benchmarks/models/text_to_ngrams.txt
"""

import argparse
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

STARTED = time.perf_counter()
ORDER = 5
BPE_SIZE = 8192
ANSWERED_LINES = 100


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a process took: seconds, CPU seconds, peak memory in MB, and what it printed."""

    wall: float
    cpu: float
    peak: float
    output: str = ""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            wall=self.wall + other.wall,
            cpu=self.cpu + other.cpu,
            peak=max(self.peak, other.peak),
            output=self.output + other.output,
        )


def run(*command: object, times: int = 1) -> Cost:
    """Run a process to its end, and measure it; of several times, the shortest."""
    costs = []
    for _ in range(times):
        before = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            started = subprocess.Popen(
                list(map(str, command)), stdout=output, stderr=subprocess.DEVNULL
            )
            _, status, used = os.wait4(started.pid, 0)
            started.returncode = os.waitstatus_to_exitcode(status)
            wall = time.perf_counter() - before
            output.seek(0)
            printed = output.read().decode()
        if started.returncode:
            sys.exit(f"{command[0]} ended with {started.returncode}: {printed[-400:]}")
        cpu = used.ru_utime + used.ru_stime
        costs.append(Cost(wall=wall, cpu=cpu, peak=used.ru_maxrss / 1024, output=printed))
    return min(costs, key=lambda cost: cost.wall)


def make_model(kind: str, text: Path, folder: Path) -> None:
    """Ours, in a process of its own: from the text file to scores by what was saved."""
    import numpy
    import torch

    from rung.data.encoding import read_lines
    from rung.data.notes import CorpusNotes
    from rung.data.tokenizer import encode_batches
    from rung.data.tokenizer_training import build_tokenizer
    from rung.data.words import batch_texts
    from rung.device import retain_freed_memory
    from rung.models.ngram.model import NgramConfig, NgramForCausalLM

    retain_freed_memory()
    marks = [("imports", time.perf_counter() - STARTED, time.process_time())]

    def mark(stage: str) -> None:
        marks.append((stage, time.perf_counter() - STARTED, time.process_time()))

    lines = [line.rstrip("\n") for line in read_lines(text, None, CorpusNotes())]
    mark("read")
    tokenizer = build_tokenizer(kind, lines, BPE_SIZE if kind == "bpe" else None)
    mark("train tokenizer")
    batches = ((batch, None) for batch in batch_texts(lines, 1 << 20))
    rows, lengths, _ = zip(*encode_batches(batches, tokenizer), strict=True)
    tokens, sizes = numpy.concatenate(rows), numpy.concatenate(lengths)
    mark("encode")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {name: getattr(tokenizer, name) for name in names}
    config = NgramConfig(vocab_size=len(tokenizer), order=ORDER, **special)
    model = NgramForCausalLM.fit(config, tokens, numpy.cumsum(sizes) - sizes)
    mark("count and smooth")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark("save")
    loaded = NgramForCausalLM.from_pretrained(folder).eval()
    answer = 0.0
    for ids, _, _ in encode_batches([([line], None) for line in lines[:ANSWERED_LINES]], tokenizer):
        answer += float(loaded.score_tokens(torch.from_numpy(ids.astype(numpy.int64)))[0][1:].sum())
    mark("load and answer")
    for (_, wall, cpu), (stage, wall_after, cpu_after) in itertools.pairwise(marks):
        print(f"{stage}\t{wall_after - wall:.2f}\t{cpu_after - cpu:.2f}")
    print(f"answer\t{answer}\t{len(tokens) - 2 * len(sizes)}\t{len(tokenizer)}")


def write_pieces(text: Path, target: Path) -> None:
    """Train byte pairs by the library itself, and write the text's ids with spaces between."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    lines = text.read_text(encoding="utf-8").split("\n")[:-1]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    # As many tokens as ours, of which three are special.
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE - 3, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    with target.open("w", encoding="utf-8") as file:
        for encoding in tokenizer.encode_batch_fast(lines):
            file.write(" ".join(map(str, encoding.ids)) + "\n")


def run_kenlm(lmplz: Path, text: Path, folder: Path, padded: int) -> tuple[Cost, Cost, float]:
    """KenLM's costs from text to a `probing` file, and to its own binary; log10 of first lines."""
    common = [lmplz, "-o", ORDER, "-S", "4G", "-T", folder / "sort", "--discount_fallback"]
    # Tokens that the text has not are part of our vocabulary, and share the unseen mass; but
    # the padding token, which has no share in it.
    common += ["--text", text, "--vocab_pad", padded]
    arpa, binary = folder / "kenlm.arpa", folder / "kenlm.bin"
    made = run(*common, "--arpa", arpa)
    made += run(lmplz.with_name("build_binary"), "probing", arpa, binary)
    own = run(*common, "--intermediate", folder / "own")
    head = "".join(text.open(encoding="utf-8").readlines()[:ANSWERED_LINES])
    asked = subprocess.run(
        [lmplz.with_name("query"), "-v", "sentence", binary],
        input=head,
        capture_output=True,
        text=True,
        check=True,
    )
    totals = [line.split()[1] for line in asked.stdout.splitlines() if line.startswith("Total: ")]
    return made, own, math.fsum(map(float, totals))


def compare(kind: str, text: Path, lmplz: Path | None, folder: Path) -> None:
    """Print the rows of one kind of tokenizer."""
    ours = run(sys.executable, __file__, text, "--ours", kind, "--folder", folder / kind)
    *stages, answer = [line.split("\t") for line in ours.output.splitlines() if "\t" in line]
    work = sum(float(wall) for _, wall, _ in stages)
    cpu = sum(float(used) for _, _, used in stages)
    print(f"\n{kind}: {int(answer[2]):,} tokens\n{'':<34}{'s':>8}{'CPU s':>8}{'MB':>8}{'ratio':>8}")
    for stage, wall, used in stages:
        print(f"  {stage:<32}{float(wall):>8.2f}{float(used):>8.2f}")
    print(f"{'ours, work':<34}{work:>8.2f}{cpu:>8.2f}{ours.peak:>8.0f}{1:>8.2f}")
    print(f"{'ours, with start and imports':<34}{ours.wall:>8.2f}{ours.cpu:>8.2f}")
    if lmplz is None:
        print("lmplz is not on the PATH: no figures of its")
        return
    given, pieces, padded = text, Cost(wall=0, cpu=0, peak=0), 0
    if kind == "bpe":
        # A small text has fewer byte pairs than we ask for.
        given, padded = folder / "pieces", int(answer[3]) - 1
        pieces = run(sys.executable, __file__, text, "--pieces", given)
    counted = sum(len(line.split()) for line in given.open(encoding="utf-8"))
    if counted != int(answer[2]):
        sys.exit(f"{kind}: KenLM is given {counted:,} tokens, and we counted {int(answer[2]):,}")
    made, own, theirs = run_kenlm(lmplz, given, folder, padded)
    rows = {"lmplz + build_binary": made, "lmplz to its own binary": own}
    if kind == "bpe":
        rows |= {f"tokenizers + {name}": pieces + cost for name, cost in rows.items()}
    for name, cost in rows.items():
        line = f"{name:<34}{cost.wall:>8.2f}{cost.cpu:>8.2f}{cost.peak:>8.0f}"
        print(f"{line}{cost.wall / work:>8.2f}")
    print(f"memory, ours to lmplz's: {ours.peak / made.peak:.2f}")
    print(f"log10 of {ANSWERED_LINES} lines: ours {float(answer[1]):.3f}, KenLM {theirs:.3f}")


def main() -> None:
    """Print a table for words and one for byte pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--lmplz", type=Path, default=shutil.which("lmplz"))
    parser.add_argument("--megabytes", type=float, default=30)
    for name in ("--ours", "--folder", "--pieces"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.ours:
        make_model(chosen.ours, chosen.text, Path(chosen.folder))
        return
    if chosen.pieces:
        write_pieces(chosen.text, Path(chosen.pieces))
        return
    from ngram import read_lines

    from rung.device import choose_device, describe_device

    lines = read_lines(chosen.text, int(chosen.megabytes * 10**6))
    print(f"From text to an answer, order {ORDER}: {describe_device(choose_device())}")
    print(f"{len(lines):,} lines; a ratio is seconds divided by those of our work")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # What is in C is compiled once on a machine.
        first = Path(folder) / "first.txt"
        first.write_text("\n".join(lines[:100]) + "\n", encoding="utf-8")
        run(sys.executable, __file__, first, "--ours", "whitespace", "--folder", folder + "/first")
        for kind in ("whitespace", "bpe"):
            compare(kind, text, chosen.lmplz and chosen.lmplz.resolve(), Path(folder))


if __name__ == "__main__":
    main()
