"""Fitting and asking the n-gram rung: seconds, rates, memory, and the cost as the text grows.

    python benchmarks/ngram.py TEXT [VALID] > benchmarks/ngram.txt

TEXT is a file or a folder of .txt; words and punctuation are apart, a line is a document. Beside the fit stand
numpy's sorts of the same keys, which any count by sorting must pay; beside the look-up, the package `kenlm` on the
same model, where it is installed.
"""

import argparse
import re
import resource
import tempfile
import time
from pathlib import Path

import numpy
import torch

from rung.device import choose_device, describe, keep_freed_memory
from rung.models.ngram import NgramConfig, NgramForCausalLM
from rung.models.ngram.arpa import write_arpa
from rung.tokenizer import build_tokenizer, encode_documents

ORDER = 5
MEGABYTES = (1, 3, 10, 30)


def read_lines(path: Path, limit: int) -> list[str]:
    """Lines of words and punctuation, white space between, from the first `limit` bytes."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    text = "".join(file.read_text(encoding="utf-8") for file in files)[:limit]
    lines = (" ".join(re.findall(r"\w+|[^\w\s]", line)) for line in text.splitlines())
    return [line for line in lines if line]


def sort_keys(tokens: numpy.ndarray, vocab_size: int) -> float:
    """Seconds that numpy takes to sort the windows of 2, 3, ... tokens, each packed into 64 bits."""
    keys, seconds = tokens.astype(numpy.uint64), 0.0
    for order in range(2, ORDER + 1):
        keys = keys[:-1] * numpy.uint64(vocab_size) + tokens[order - 1 :].astype(numpy.uint64)
        before = time.perf_counter()
        numpy.unique(keys, return_inverse=True)
        seconds += time.perf_counter() - before
    return seconds


def best_of(times: int, function, *arguments) -> tuple[float, object]:
    """The shortest of some tries, in seconds, and the last result."""
    seconds, result = [], None
    for _ in range(times):
        before = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - before)
    return min(seconds), result


def measure(lines: list[str], valid: list[str] | None) -> None:
    """One line of the table; for the last size also the look-up."""
    tokenizer = build_tokenizer("whitespace", lines)
    rows = list(encode_documents(lines, tokenizer))
    tokens = numpy.concatenate(rows).astype(numpy.uint32)
    starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}

    def fit() -> NgramForCausalLM:
        config = NgramConfig(vocab_size=len(tokenizer), order=ORDER, **special)
        return NgramForCausalLM.fit(config, tokens, starts)

    fitting, model = best_of(2, fit)
    assert isinstance(model, NgramForCausalLM)
    sorting = sort_keys(tokens, len(tokenizer))
    ngrams = sum(model.config.num_ngrams)
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(tokens):>10,} {ngrams:>12,} {fitting:>8.2f} {sorting:>10.2f} {sorting / fitting:>7.1f}"
        f" {size / ngrams:>11.1f} {peak:>9.1f}",
        flush=True,
    )
    if valid is not None:
        look_up(model, tokenizer, valid)


def look_up(model: NgramForCausalLM, tokenizer, valid: list[str]) -> None:
    """Rates of scoring text, ours and KenLM's."""
    ids = torch.tensor([token for row in encode_documents(valid, tokenizer) for token in row])
    ours, _ = best_of(3, model.score_tokens, ids)
    print(f"\nscoring {len(ids):,} tokens of other text: {len(ids) / ours:,.0f} a second")
    context = ids[None, :64]
    state = model(context, logits_to_keep=1).past_key_values
    step, _ = best_of(20, lambda: model(ids[None, 64:65], past_key_values=state))
    print(f"one step of generation, vocabulary {len(tokenizer):,}: {1000 * step:.2f} ms")
    try:
        import kenlm
    except ImportError:
        print("kenlm is not installed: no figure of its")
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = best_of(1, write_arpa, model, tokenizer, Path(folder) / "model.arpa")
        print(f"writing ARPA: {sum(model.config.num_ngrams) / seconds:,.0f} n-grams a second")
        theirs = kenlm.Model(str(Path(folder) / "model.arpa"))
    kenlms, _ = best_of(3, lambda: [theirs.score(line) for line in valid])
    print(f"kenlm from Python, a sentence at a time: {len(ids) / kenlms:,.0f} a second; ratio {kenlms / ours:.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("valid", type=Path, nargs="?")
    chosen = parser.parse_args()
    keep_freed_memory()
    print(f"Kneser-Ney of order {ORDER}: {describe(choose_device())}\n")
    print("    tokens      n-grams  fit (s)  sorts (s)   ratio  bytes each  peak (GB)")
    for megabytes in MEGABYTES:
        valid = read_lines(chosen.valid, 2**30) if chosen.valid and megabytes == MEGABYTES[-1] else None
        measure(read_lines(chosen.text, megabytes * 10**6), valid)


if __name__ == "__main__":
    main()
