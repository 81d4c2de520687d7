"""Measure speed and memory of making tokens of a text on disk, beside `datasets.map`.

Memory is watched over time. TEXT is a folder of .txt; its train/ is read. At its own size three
ways take turns, each in a process of its own, from documents that are stored already to ids that
are stored too: one batch after another, as rung did at first; `pack_train` as it is now; and
`datasets.map` in two processes with the ids joined into one file, as nanoGPT's prepare.py for
OpenWebText does it. The text a hundred times over goes through all of it: it is read, stored and
cut, a tokenizer is trained, and the text is packed. Memory is what no file stands behind, of all
processes together, shared pages divided (RssAnon of Linux, Pss_Anon where there are several); the
system can take back pages of mapped files at any time. tokenizing.svg, beside this file, is drawn
too.

    python benchmarks/data/tokenizing.py TEXT > benchmarks/data/tokenizing.txt
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COPIES, ROUNDS, VOCABULARY = 100, 3, 8192
EVERY = 0.05  # seconds between two looks at memory
WAYS = {"one by one": "before", "datasets.map": "peer", "rung": "now"}


def own_memory(process: int, alone: bool = True) -> float:
    """Megabytes of a process and those it started that no file stands behind; what they share is
    divided.
    """
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [
            int(child) for task in tasks for child in (task / "children").read_text().split()
        ]
        if alone and not children:
            return read_size(
                f"/proc/{process}/status", "RssAnon"
            )  # the same where none is shared, and found at once
        return read_size(f"/proc/{process}/smaps_rollup", "Pss_Anon") + sum(
            own_memory(c, False) for c in children
        )
    except (OSError, StopIteration):  # it has ended
        return 0.0


def read_size(path: str, name: str) -> float:
    """Megabytes that a line of one of Linux's files names."""
    return (
        next(
            int(line.split()[1])
            for line in Path(path).read_text().splitlines()
            if line.startswith(name)
        )
        / 1024
    )


def watch(*arguments: str, cache: Path) -> tuple[dict, list[tuple[float, float]]]:
    """What a child process of this script printed last, and its memory at each second since it
    began.
    """
    child = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RUNG_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")},
    )
    began, seen = time.time(), []
    while child.poll() is None:
        seen.append((time.time() - began, own_memory(child.pid)))
        time.sleep(EVERY)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed")
    facts = json.loads(child.stdout.read().splitlines()[-1])
    return facts | {"began": facts["began"] - began}, seen


def pack_before(rows, tokenizer, path: Path) -> int:
    """One batch encoded, turned into numbers and written, then the next."""
    import numpy

    from rung.data.tokenizer import encode_ordinary

    starts, count, batch = [], 0, []
    with path.open("wb") as file:

        def write() -> None:
            nonlocal count
            for encoding in encode_ordinary(tokenizer, batch):
                ids = [tokenizer.bos_token_id, *encoding.ids, tokenizer.eos_token_id]
                starts.append(count)
                count += len(ids)
                file.write(numpy.array(ids, dtype=numpy.uint16).tobytes())
            batch.clear()

        for text in rows["text"]:
            batch.append(text)
            if len(batch) == 256:
                write()
        write()
    return count


def pack_like_nanogpt(rows, tokenizer, path: Path) -> int:
    """`map` in two processes, the ids stored, then joined."""
    import datasets
    import numpy

    datasets.disable_progress_bars()

    def process(batch):
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)[
            "input_ids"
        ]
        ids = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in ids]
        return {"ids": ids, "len": list(map(len, ids))}

    found = rows.map(process, batched=True, num_proc=2, remove_columns=["text"])
    total = int(numpy.sum(found["len"]))
    row, at, shards = (
        numpy.memmap(path, dtype=numpy.uint16, mode="w+", shape=(total,)),
        0,
        min(1024, len(found)),
    )
    for number in range(shards):
        batch = found.shard(num_shards=shards, index=number, contiguous=True).with_format("numpy")
        ids = numpy.concatenate(batch["ids"])
        row[at : at + len(ids)] = ids
        at += len(ids)
    row.flush()
    return at


def run_one(way: str, text: str, tokenizer_folder: str) -> None:
    """Pack once, and print how long it took."""
    from rung.data.corpus import load_corpus
    from rung.data.tokenizer_loading import load_tokenizer
    from rung.files import cache_folder
    from rung.workflows.prepare import pack_train

    corpus, tokenizer = load_corpus(text), load_tokenizer(tokenizer_folder)
    began, before = time.time(), sum(os.times()[:4])
    if way == "now":
        tokens = len(pack_train(corpus, tokenizer))
    else:
        pack = pack_before if way == "before" else pack_like_nanogpt
        tokens = pack(corpus.train, tokenizer, cache_folder() / "row.bin")
    facts = {
        "began": began,
        "seconds": time.time() - began,
        "tokens": tokens,
        "bytes": corpus.bytes["train"],
    }
    print(json.dumps(facts | {"cpu": sum(os.times()[:4]) - before}))


def run_all(text: str) -> None:
    """Text to packed tokens, and print when each stage began and how far packing was at each
    second.
    """
    from rung.data.corpus import load_corpus
    from rung.recipe import Recipe
    from rung.workflows.prepare import pack_train, prepare_tokenizer

    began, before, marks = time.time(), sum(os.times()[:4]), []
    corpus = load_corpus(text)
    stages = {"reading": 0.0, "training the tokenizer": time.time() - began}
    tokenizer = prepare_tokenizer(
        Recipe(rung="bigram", corpus=text, tokenizer={"kind": "bpe", "vocab_size": VOCABULARY}),
        corpus,
    )
    stages["tokenizing"] = time.time() - began

    def mark(stage) -> None:
        if not marks or time.time() - began - marks[-1][0] > 1:
            marks.append((time.time() - began, sum(os.times()[:4]), stage.done))

    packed = pack_train(corpus, tokenizer, mark)
    facts = {
        "began": began,
        "seconds": time.time() - began,
        "tokens": len(packed),
        "bytes": corpus.bytes["train"],
    }
    facts["cpu"] = sum(os.times()[:4]) - before
    print(json.dumps(facts | {"stages": stages, "marks": marks, "documents": len(packed.starts)}))


def compare(text: str, folder: Path) -> None:
    """Three ways in turn, each three times."""
    from rung.data.corpus import load_corpus
    from rung.data.tokenizer_training import build_tokenizer

    os.environ["RUNG_CACHE"] = str(folder / "small")
    corpus = load_corpus(text)
    build_tokenizer("bpe", corpus.train["text"], VOCABULARY).save_pretrained(folder / "tokenizer")
    found: dict[str, list] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            for kept in (*folder.glob("small/packed/*"), *folder.glob("small/corpora/cache-*")):
                kept.unlink()  # what was made the last time
            facts, seen = watch(
                "--one", way, text, str(folder / "tokenizer"), cache=folder / "small"
            )
            base = max((size for at, size in seen if at <= facts["began"]), default=0.0)
            peak = max(size for _, size in seen)
            found[name].append((facts["tokens"] / facts["seconds"], facts, base, peak))
    print(
        f"{corpus.bytes['train'] / 1e6:.0f} MB, {len(corpus.train):,} documents, a vocabulary of "
        f"{VOCABULARY:,}\n"
    )
    print(
        f"{'way':<14}{'tokens':>12}{'tokens/s':>12}{'MB/s':>8}{'ratio':>8}{'CPU s':>8}"
        f"{'MB before':>12}{'MB peak':>10}"
    )
    first = statistics.median(rate for rate, *_ in found["one by one"])
    for name, runs in found.items():
        rate, facts, base, peak = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        speed = facts["bytes"] / facts["seconds"] / 1e6
        print(
            f"{name:<14}{facts['tokens']:>12,}{rate:>12,.0f}{speed:>8.1f}{rate / first:>8.2f}"
            f"{facts['cpu']:>8.1f}{base:>12.0f}{peak:>10.0f}",
            flush=True,
        )


def climb_all(text: str, folder: Path, copies: int) -> tuple[dict, list[tuple[float, float]]]:
    """The text so many times over from files to packed tokens; its facts and its memory over
    time.
    """
    path = folder / f"{copies}.txt"
    files = sorted((Path(text) / "train").glob("*.txt"))
    with path.open("w") as file:
        for _ in range(copies):
            for each in files:
                file.write(each.read_text() + "\n\n")
    facts, seen = watch("--all", str(path), cache=folder / f"cache-{copies}")
    path.unlink()
    stages = facts["stages"]
    packing = facts["seconds"] - stages["tokenizing"]
    sizes = [
        [m for at, m in seen if at - facts["began"] >= start]
        for start in (0.0, stages["tokenizing"])
    ]
    seen_at_start = max(m for at, m in seen if at <= facts["began"])
    half = [m for at, m in seen if at - facts["began"] >= stages["tokenizing"] + packing / 2]
    print(
        f"{facts['bytes'] / 1e6:>8,.0f}{facts['documents']:>12,}{facts['tokens']:>14,}"
        f"{stages['training the tokenizer']:>10.0f}"
        f"{stages['tokenizing'] - stages['training the tokenizer']:>10.0f}"
        f"{packing:>10.0f}{facts['tokens'] / packing:>12,.0f}{facts['bytes'] / packing / 1e6:>8.1f}"
        f"{facts['cpu']:>8.0f}{seen_at_start:>10.0f}{max(sizes[0]):>10.0f}"
        f"{max(sizes[1]):>10.0f}{max(half):>14.0f}",
        flush=True,
    )
    return facts, seen


def draw(runs: dict[str, tuple[dict, list[tuple[float, float]]]], path: Path) -> None:
    """Memory over time, and documents packed a second, of each size."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (memory, rate) = pyplot.subplots(2, 1, figsize=(7, 5.5), sharex=True)
    for name, (facts, seen) in runs.items():
        kept = seen[:: max(1, len(seen) // 400)]
        memory.plot(
            [at - facts["began"] for at, _ in kept],
            [size for _, size in kept],
            label=name,
            linewidth=1,
        )
        marks, tokens = facts["marks"], facts["tokens"] / facts["documents"]
        step = max(1, len(marks) // 60)
        ends = list(zip(marks[::step], marks[step::step], strict=False))
        rates = [(end[2] - start[2]) * tokens / (end[1] - start[1]) / 1e6 for start, end in ends]
        rate.plot(
            [end[0] for _, end in ends],
            rates,
            label=name,
            linewidth=1,
            marker="." if len(ends) < 9 else "",
        )
    for number, (stage, start) in enumerate(list(runs.values())[-1][0]["stages"].items()):
        for axes in (memory, rate):
            axes.axvline(start, color="0.7", linewidth=0.8)
        memory.annotate(
            stage,
            (start, 0),
            xytext=(3, 3 + 10 * number),
            textcoords="offset points",
            fontsize=8,
            color="0.4",
        )
    memory.set(ylabel="MB that no file stands behind", ylim=(0, None))
    rate.set(ylabel="million tokens a second\nof processor time", xlabel="seconds", ylim=(0, None))
    memory.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print both tables, and draw the second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="?")
    parser.add_argument("--copies", type=int, default=COPIES)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--all", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        run_one(*chosen.one)
    elif chosen.all:
        run_all(chosen.all)
    else:
        from rung.device import choose_device, describe_device

        print(f"Text to tokens: {describe_device(choose_device())}\n")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            compare(chosen.text, folder)
            print(
                "\nfrom files to packed tokens; MB of memory before, at the peak of reading, "
                "training and packing,"
            )
            print("at that of packing, and at that of its second half")
            print(
                f"{'MB':>8}{'documents':>12}{'tokens':>14}{'read s':>10}"
                f"{'train s':>10}{'pack s':>10}{'tokens/s':>12}{'MB/s':>8}{'CPU s':>8}"
                f"{'before':>10}{'peak':>10}{'packing':>10}{'2nd half':>14}"
            )
            runs = {}
            for copies in (1, chosen.copies):
                facts, seen = climb_all(chosen.text, folder, copies)
                runs[f"{facts['bytes'] / 1e6:,.0f} MB"] = facts, seen
            draw(runs, Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    main()
