"""Measure counting and scoring by the n-gram rung beside KenLM, numpy's sorts and nltk.

The text grows from 1 MB to 30 MB. TEXT and VALID are files or folders of .txt; words and
punctuation are apart, and a line is a document. Beside the fit stand numpy's sorts of the same keys
and, where it is built, KenLM's `lmplz`, which reads the text and writes an ARPA file; the whole way
from a text is measured by text_to_ngrams.py. Beside scoring stands the package `kenlm` with the
same model. nltk counts the smallest text only, because it takes long. ngram.svg, beside this file,
is drawn too.

    python benchmarks/models/ngram.py TEXT VALID [--lmplz PATH] > benchmarks/models/ngram.txt
"""

import argparse
import re
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from rung.data.tokenizer import encode_documents
from rung.data.tokenizer_training import build_tokenizer
from rung.device import choose_device, describe_device, retain_freed_memory
from rung.export.arpa import write_arpa
from rung.models.ngram.model import NgramConfig, NgramForCausalLM

ORDER = 5
MEGABYTES = (1, 3, 10, 30)


def read_lines(path: Path, limit: int) -> list[str]:
    """Lines of words and punctuation, white space between, from the first `limit` bytes."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    text = "".join(file.read_text(encoding="utf-8") for file in files)[:limit]
    lines = (" ".join(re.findall(r"\w+|[^\w\s]", line)) for line in text.splitlines())
    return [line for line in lines if line]


def sort_keys(tokens: numpy.ndarray, vocab_size: int) -> float:
    """Seconds that numpy takes to sort the windows of 2, 3, ... tokens, each packed into 64
    bits.
    """
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


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one size of text cost, in seconds, bytes and gigabytes; None where lmplz is not
    there.
    """

    tokens: int
    ngrams: int
    fit: float
    sorts: float
    lmplz: float | None  # from text to an ARPA file
    bytes_each: float
    peak: float

    def show(self) -> str:
        theirs = "" if self.lmplz is None else f"{self.lmplz:>10.2f}"
        return (
            f"{self.tokens:>10,}{self.ngrams:>12,}{self.fit:>9.2f}{self.sorts:>9.2f}{theirs}"
            f"{self.bytes_each:>10.1f}{self.peak:>9.1f}"
        )


def measure(lines: list[str], lmplz: str | None) -> tuple[Line, NgramForCausalLM, object]:
    """One line of the table, the model and its tokenizer."""
    tokenizer = build_tokenizer("whitespace", lines)
    rows = [numpy.array(row, dtype=numpy.uint32) for row in encode_documents(lines, tokenizer)]
    tokens, starts = numpy.concatenate(rows), numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    special = {
        key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }

    def fit() -> NgramForCausalLM:
        return NgramForCausalLM.fit(
            NgramConfig(vocab_size=len(tokenizer), order=ORDER, **special), tokens, starts
        )

    fitting, model = best_of(2, fit)
    assert isinstance(model, NgramForCausalLM)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    line = Line(
        tokens=len(tokens),
        ngrams=sum(model.config.num_ngrams),
        fit=fitting,
        sorts=sort_keys(tokens, len(tokenizer)),
        lmplz=run_lmplz(lmplz, lines) if lmplz else None,
        bytes_each=size / sum(model.config.num_ngrams),
        peak=peak,
    )
    return line, model, tokenizer


def run_lmplz(lmplz: str, lines: list[str]) -> float:
    """Seconds from text to an ARPA file: the shorter of two tries."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [
            lmplz,
            "-o",
            str(ORDER),
            "-S",
            "4G",
            "-T",
            folder,
            "--discount_fallback",
            "--text",
            str(text),
            "--arpa",
            f"{folder}/model.arpa",
        ]
        seconds, _ = best_of(2, lambda: subprocess.run(command, check=True, capture_output=True))
    return seconds


def measure_probing(lmplz: str, arpa: Path, ngrams: int) -> str:
    """Bytes an n-gram in KenLM's `probing` format, where its `build_binary` stands beside
    `lmplz`.
    """
    program, binary = Path(lmplz).with_name("build_binary"), arpa.with_suffix(".bin")
    if not program.exists():
        return "build_binary is not beside lmplz: no size of KenLM's probing format"
    subprocess.run([program, "probing", arpa, binary], check=True, capture_output=True)
    return f"KenLM's probing format: {binary.stat().st_size / ngrams:.1f} bytes an n-gram"


def run_nltk(lines: list[str], words: int) -> str:
    """How long nltk's Kneser-Ney takes to fit this, and a word of it to score."""
    try:
        from nltk.lm import KneserNeyInterpolated
        from nltk.lm.preprocessing import padded_everygram_pipeline
    except ImportError:
        return "nltk is not installed: no figure of its"
    sentences = [line.split() for line in lines]
    before = time.perf_counter()
    model = KneserNeyInterpolated(ORDER)
    model.fit(*padded_everygram_pipeline(ORDER, sentences))
    fitting = time.perf_counter() - before
    row = [word for sentence in sentences for word in sentence]
    before = time.perf_counter()
    for at in range(ORDER, ORDER + words):
        model.score(row[at], row[at - ORDER + 1 : at])
    scoring = (time.perf_counter() - before) / words
    return (
        f"nltk on the smallest: fit {fitting:.1f} s, scoring {1 / scoring:,.1f} words a second "
        f"({words} tried)"
    )


def draw(lines: list[Line], path: Path) -> None:
    """Seconds against tokens, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    tokens = [line.tokens for line in lines]
    axes.loglog(tokens, [line.fit for line in lines], "o-", label="rung: fit")
    if lines[0].lmplz is not None:
        axes.loglog(tokens, [line.lmplz for line in lines], "s-", label="lmplz: text to ARPA")
    axes.set(
        xlabel="tokens of text",
        ylabel="seconds",
        title=f"Kneser-Ney of order {ORDER}, {describe_device(choose_device())}",
    )
    axes.set_xticks(tokens, [f"{size / 1e6:.2g} M" for size in tokens])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def look_up(model: NgramForCausalLM, tokenizer, valid: list[str], lmplz: str | None) -> None:
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
        if lmplz:
            print(measure_probing(lmplz, Path(folder) / "model.arpa", sum(model.config.num_ngrams)))
        theirs = kenlm.Model(str(Path(folder) / "model.arpa"))
    kenlms, _ = best_of(3, lambda: [theirs.score(line) for line in valid])
    print(
        f"kenlm from Python, a sentence at a time: {len(ids) / kenlms:,.0f} a second; ratio "
        f"{kenlms / ours:.1f}"
    )


def main() -> None:
    """Print the table and the rates, and draw the growth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument(
        "--lmplz", default=shutil.which("lmplz"), help="KenLM's program; from the PATH by default"
    )
    chosen = parser.parse_args()
    retain_freed_memory()
    print(f"Kneser-Ney of order {ORDER}: {describe_device(choose_device())}; seconds\n")
    theirs = "     lmplz" if chosen.lmplz else ""
    print(f"    tokens     n-grams      fit    sorts{theirs}  bytes ea  peak GB")
    lines = []
    for megabytes in MEGABYTES:
        line, model, tokenizer = measure(read_lines(chosen.text, megabytes * 10**6), chosen.lmplz)
        lines.append(line)
        print(line.show(), flush=True)
    print(
        "\nfit: from tokens in memory. sorts: numpy's, of the same keys. lmplz: from text to ARPA."
    )
    if not chosen.lmplz:
        print("lmplz is not on the PATH: no figures of its")
    look_up(model, tokenizer, read_lines(chosen.valid, 2**30), chosen.lmplz)
    print(run_nltk(read_lines(chosen.text, MEGABYTES[0] * 10**6), words=20))
    draw(lines, Path(__file__).with_suffix(".svg"))


if __name__ == "__main__":
    main()
