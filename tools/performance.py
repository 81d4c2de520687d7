"""The table of docs/performance.md, read from what benchmarks printed; tools/update.py fills it
in.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# As `device.describe_device` says it.
MACHINE = re.compile(
    r"\d+ cores? of [^,;:\n]+?(?: with bfloat16|, bfloat16|, AVX2)?(?=[,;:\n])"
    r"|\d+ x NVIDIA [^,;\n]+"
)
NOT_RECORDED = "not recorded yet"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement: its topic, what its figure is, its output, and how the figure is read.

    `script` is what printed the output where its name is another, and `held` what stands before its
    command. A row whose script is not there is left out.
    """

    topic: str
    what: str
    output: str
    read: Callable[[str], str | None]
    script: str = ""
    held: str = ""


def find_all(pattern: str, shown: str, join: str = "; ") -> Callable[[str], str | None]:
    """Make a reader that shows every match of a pattern, as `shown` says."""

    def read(text: str) -> str | None:
        found = re.finditer(pattern, text, re.MULTILINE)
        return join.join(shown.format(*match.groups()) for match in found) or None

    return read


def read_climb(text: str) -> str | None:
    """The bits per byte of what matters in a climb."""
    names = ("ngram", "rnn", "rnn-attention", "gpt2", "llama3", "lzma after train")
    found = [
        (name, re.search(rf"^ +{name} .*? (\d\.\d+)(?: \(|$)", text, re.MULTILINE))
        for name in names
    ]
    return ", ".join(f"{name} {match[1]}" for name, match in found if match) or None


def read_seeds(text: str) -> str | None:
    """The mean over the seeds of every rung that is trained, by corpus and machine."""
    found = []
    for place, rows in re.findall(r"^(\S.*, .*)\n((?:.+\n)+)", text, re.MULTILINE):
        means = re.findall(r"^(rnn\S*|gpt2|llama3) .* ([\d.]+) +[\d.]+$", rows, re.MULTILINE)
        found += [f"{place}: " + ", ".join(f"{rung} {mean}" for rung, mean in means)]
    return "; ".join(found) or None


def read_busy(text: str) -> str | None:
    """The lowest share and the lowest gain beside busy processes, and beside those that came."""
    pattern = r"^(.*?) +[1-9] +\d+ +[\d,]+ +\d+% +(\d+)% +([\d.]+)x$"
    rows = re.findall(pattern, text, re.MULTILINE)
    came = [int(share) for job, share, _ in rows if job.endswith("midway")]
    there = [(int(share), float(gain)) for job, share, gain in rows if not job.endswith("midway")]
    if not there:
        return None
    shares, gains = zip(*there, strict=True)
    found = f"{min(shares)}% of the fair share at least, {min(gains):.2f}x one thread at least"
    return f"{found}; {min(came)}% after they came midway" if came else found


def read_llama_cpp(text: str, rows: str) -> str:
    """The range of rung's tokens a second over llama.cpp's in some rows, by llama.cpp's width."""
    ratios: dict[str, list[float]] = {}
    for width, ratio in re.findall(rf" (F32|F16|Q8_0|Q4_0) .*{rows}.*? ([\d.]+)x", text):
        ratios.setdefault(width, []).append(float(ratio))
    return "; ".join(
        f"{width} {min(them):.2f}x to {max(them):.2f}x" for width, them in ratios.items()
    )


def read_decoding(text: str) -> str | None:
    """The ratios of decoding, and the shares of what memory allows where they were measured."""
    found = read_llama_cpp(text, "decode")
    shares = find_all(r"^(\w+), \d+ MB .* (\d+%) +\d+%$", "{0} {1}", join=", ")(text)
    return f"{found}; of a plain read of the weights of 124 M: {shares}" if shares else found


def read_prompts(text: str) -> str | None:
    """The ratios of reading prompts of 512 and 2,048 tokens."""
    return read_llama_cpp(text, r"prompt (?:512|2048) +read")


def read_muon(text: str) -> str | None:
    """The bits per byte of both optimizers, by millions of weights."""
    rows = re.findall(
        r"^\w+ +([\d.]+) +[\d,]+ +\d+ +\d+ +(AdamW|Muon) .* ([\d.]+)$", text, re.MULTILINE
    )
    found: dict[str, dict[str, str]] = {}
    for weights, side, bits in rows:
        found.setdefault(weights, {})[side] = bits
    return (
        "; ".join(
            f"{weights} M: {sides['AdamW']} and {sides['Muon']}"
            for weights, sides in found.items()
            if len(sides) == 2
        )
        or None
    )


AVX2 = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 "
SHAKESPEARE = find_all(r"^rung +\d+ +([\d.]+) +[\d.]+ +([\d.]+)$", "{1}x ({0} s)")
PRODUCTS = find_all(r"^(\w+) of ([\d.]+ M), .* float32(?: +[\d.]+){3} +(\d+%)$", "{0} {1} {2}")
ROWS = (
    Row(
        topic="Time to a model",
        what="Shakespeare to 1.886 nats a character, beside nanoGPT's recipe",
        output="benchmarks/training/train-shakespeare.txt",
        read=SHAKESPEARE,
        script="benchmarks/training/train.py",
    ),
    Row(
        topic="Time to a model",
        what="Bits per byte of AdamW and of Muon after the same CPU time, by weights",
        output="benchmarks/training/muon.txt",
        read=read_muon,
    ),
    Row(
        topic="Time to a model",
        what="The rungs of `rung climb` after five minutes, bits per byte",
        output="docs/results/climb-python-docs.txt",
        read=read_climb,
    ),
    Row(
        topic="Time to a model",
        what="The same, held to AVX2",
        output="docs/results/climb-python-docs-avx2.txt",
        read=read_climb,
    ),
    Row(
        topic="Time to a model",
        what="The same on 30 MB of novels",
        output="docs/results/climb-novels.txt",
        read=read_climb,
    ),
    Row(
        topic="Time to a model",
        what="The same on the novels, held to AVX2",
        output="docs/results/climb-novels-avx2.txt",
        read=read_climb,
    ),
    Row(
        topic="Time to a model",
        what="The same, the mean of three seeds",
        output="benchmarks/recipe/seeds.txt",
        read=read_seeds,
    ),
    Row(
        topic="Time to a model",
        what="What of a rung's 75 seconds in `rung climb` is not steps of training",
        output="benchmarks/training/short_runs.txt",
        read=find_all(r"^([\w-]+) {2,}.* ([\d.]+%)$", "{0} {1}"),
    ),
    Row(
        topic="Text to n-grams",
        what="Scoring other text, tokens a second beside the package kenlm",
        output="benchmarks/models/ngram.txt",
        read=find_all(r"a second; ratio ([\d.]+)$", "{0}x"),
    ),
    Row(
        topic="Text to n-grams",
        what="From a text file to an answer, words and then byte pairs, over our work's seconds",
        output="benchmarks/models/text_to_ngrams.txt",
        read=find_all(r"^lmplz (\+ build_binary|to its own binary) .* ([\d.]+)$", "lmplz {0} {1}x"),
    ),
    Row(
        topic="Writing",
        what="Llama of 6.8 M, one text, prompt of 16, beside Hugging Face: float32, bfloat16",
        output="benchmarks/generation/decode.txt",
        read=lambda text: find_all(r"^ +1 +16 .*? ([\d.]+)x +([\d.]+)x", "{0}x, {1}x")(
            text.partition("GPT-2 small")[0]
        ),
    ),
    Row(
        topic="Writing",
        what="Decoding beside llama.cpp, by its width",
        output="benchmarks/generation/llama_cpp.txt",
        read=read_decoding,
    ),
    Row(
        topic="Writing",
        what="Reading prompts of 512 and 2,048 tokens beside llama.cpp, by its width",
        output="benchmarks/generation/llama_cpp.txt",
        read=read_prompts,
    ),
    Row(
        topic="Writing",
        what="Decoding beside llama.cpp, held to AVX2",
        output="benchmarks/generation/llama_cpp-avx2.txt",
        script="benchmarks/generation/llama_cpp.py",
        read=read_decoding,
    ),
    Row(
        topic="Writing",
        what="Reading prompts of 512 and 2,048 tokens beside llama.cpp, held to AVX2",
        output="benchmarks/generation/llama_cpp-avx2.txt",
        script="benchmarks/generation/llama_cpp.py",
        read=read_prompts,
    ),
    Row(
        topic="Serving",
        what="16 texts at a time, tokens a second over those of one",
        output="benchmarks/serve/serve.txt",
        read=find_all(r"^(\w+, HTTP).* ([\d.]+)x$", "{0} {1}x"),
    ),
    Row(
        topic="Serving",
        what="Tokens a second beside llama.cpp's server",
        output="benchmarks/serve/streams.txt",
        read=find_all(r"^ +(\d+) .*? ([\d.]+)x +([\d.]+)x$", "{0} streams {1}x, first token {2}x"),
    ),
    Row(
        topic="Serving",
        what="The longest wait of others while a prompt fills the window",
        output="benchmarks/serve/streams.txt",
        read=find_all(r"^(.*), rung +[\d.,]+ +([\d.,]+) +[\d.,]+$", "{0}: {1} ms"),
    ),
    Row(
        topic="A busy machine",
        what="Decoding, training and serving beside 1, 2 and 4 busy processes",
        output="benchmarks/device/busy.txt",
        read=read_busy,
    ),
    Row(
        topic="float32",
        what="Shakespeare to 1.886 nats a character, beside nanoGPT's recipe",
        output="benchmarks/training/train-float32.txt",
        script="benchmarks/training/train.py",
        read=SHAKESPEARE,
    ),
    Row(
        topic="float32",
        what="The same, held to AVX2",
        output="benchmarks/training/train-shakespeare-avx2.txt",
        script="benchmarks/training/train.py",
        held=AVX2,
        read=SHAKESPEARE,
    ),
    Row(
        topic="float32",
        what="Training a Llama of 7 M and a GPT-2 of 67 M, beside the Hugging Face Trainer",
        output="benchmarks/training/train-float32.txt",
        script="benchmarks/training/train.py",
        read=find_all(r"^rung, (the same AdamW|its own Muon) +[\d,]+ +([\d.]+)", "{0} {1}x"),
    ),
    Row(
        topic="float32",
        what="The machine's products that a small model's training step reaches",
        output="benchmarks/training/products.txt",
        read=PRODUCTS,
    ),
    Row(
        topic="float32",
        what="The same, held to AVX2",
        output="benchmarks/training/products-avx2.txt",
        script="benchmarks/training/products.py",
        held=AVX2,
        read=PRODUCTS,
    ),
    Row(
        topic="A GPU",
        what="GPT-2 124M at 1,024 tokens: share of the peak (MFU), beside a plain loop in PyTorch",
        output="benchmarks/device/gpu.txt",
        read=find_all(r"^\S+ +(rung, \w+): .*?, ([\d.]+% MFU), ([\d.]+)x", "{0} {1}, {2}x"),
    ),
)


def read_command(script: Path) -> str:
    """The command that a benchmark's docstring says it is run by, without where its output goes."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    command = re.search(r"^ *(python benchmarks/.*?)(?: +[>#].*)?$", docstring, re.MULTILINE)
    assert command, f"{script} does not say how it is run"
    return command[1]


def draw_row(row: Row) -> str | None:
    """A row of the table; None where neither its output nor its script is there."""
    output = ROOT / row.output
    script = ROOT / (row.script or row.output.replace(".txt", ".py"))
    if not output.exists() and not script.exists():
        return None
    text = output.read_text(encoding="utf-8") if output.exists() else ""
    if script.exists():
        command = row.held + read_command(script)
    else:
        command = text.splitlines()[0].partition("#")[0].removeprefix("$ ").strip()
    machine = MACHINE.search(text)
    figure, link = NOT_RECORDED, ""
    if text:
        # A figure that is printed in another way by now is looked up by the reader.
        figure = row.read(text) or "see the output"
        link = f" ([output](../{row.output}))".replace("../docs/", "")
    place = machine[0] if machine else ""
    return f"| {row.topic} | {row.what} | {figure}{link} | {place} | `{command}` |"


def draw_performance() -> str:
    """All rows, in the order of the topics."""
    head = ["| topic | what | figure | processor | command |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *filter(None, map(draw_row, ROWS))])


TABLES = {"performance": draw_performance}
