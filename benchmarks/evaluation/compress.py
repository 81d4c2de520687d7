"""Compress books with rung and with general compressors, primed with other books and not.

Primed compressors have read the training books before: rung's models are trained on them, lzma and
PPMd read them first (the size of both texts less that of the training books), zstd takes them as a
dictionary. Those that are not primed have read nothing, and a model of rung's is trained on the
very books that it compresses. The size of a model, or of the training books in its place, stands in
a column of its own: who sends a text once has to send that too.

    python benchmarks/evaluation/compress.py FOLDER [--train N] [--test N] [--slice N] \
        [--minutes M] > benchmarks/evaluation/compress.txt

FOLDER has .txt files in train/ and in test/ (or validation/). --train and --test are the most bytes
that are read of each. Each Llama 3, of 1 M weights, is trained for --minutes, and compresses the
first --slice bytes of the test books; what a row marked * says is of those. A part of its text is
held out as always, to choose the best weights by. With nothing but FOLDER it takes four minutes on
two cores.
"""

import argparse
import bz2
import lzma
import math
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import brotli
import pyppmd
import zstandard

import rung
from rung.device import choose_device, describe_device

PPMD_ORDER, PPMD_MEMORY = 8, 2**28
LLAMA = {
    "tokenizer.vocab_size": 2048,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Row:
    """What a compressor made of the books: bytes, seconds, and the bytes of what it has read."""

    name: str
    size: int
    before: int
    compressing: float
    decompressing: float
    text: int  # bytes that were compressed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2**23)
    parser.add_argument("--test", type=int, default=2**20)
    parser.add_argument("--slice", type=int, default=2**18)
    parser.add_argument("--minutes", type=float, default=1.0)
    args = parser.parse_args()
    held_out = next(name for name in ("test", "validation") if (args.folder / name).is_dir())
    train = read_books(args.folder / "train", args.train)
    test = read_books(args.folder / held_out, args.test)
    print(f"Compressing books: {describe_device(choose_device())}")
    print(f"{len(test):,} bytes of {held_out}/, primed with {len(train):,} bytes of train/")
    print(f"Llama 3: {args.minutes:g} minutes of training; *: the first {args.slice:,} bytes\n")
    how = (args.slice, args.minutes)
    print_table("not primed", [*general(test), *ours(test, test, *how)])
    print_table("primed", [*primed(train, test), *ours(train, test, *how)])


def read_books(folder: Path, limit: int) -> bytes:
    """Read the books of a folder in the order of their names, up to `limit` bytes."""
    books = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.txt")))
    return books[:limit].decode(errors="ignore").encode()


def general(test: bytes) -> list[Row]:
    """Compress with general compressors at their strongest."""
    strongest = {
        "zlib -9": (lambda text: zlib.compress(text, 9), zlib.decompress),
        "bz2 -9": (bz2.compress, bz2.decompress),
        "lzma -9e": (
            lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
            lzma.decompress,
        ),
        "zstd -19": (
            zstandard.ZstdCompressor(level=19).compress,
            zstandard.ZstdDecompressor().decompress,
        ),
        "brotli -11": (brotli.compress, brotli.decompress),
        f"PPMd, order {PPMD_ORDER}": (ppmd, unppmd(len(test))),
    }
    return [measure(name, test, *both) for name, both in strongest.items()]


def primed(train: bytes, test: bytes) -> list[Row]:
    """Compress with those general compressors that can read other text first."""
    dictionary = zstandard.ZstdCompressionDict(train, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    log = max(10, min(31, math.ceil(math.log2(len(train) + len(test)))))
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=min(log, 27))
    coder = zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary)
    decoder = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=2**31)
    lzma_filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(4096, 2**log)}]
    return [
        measure("zstd -19", test, coder.compress, decoder.decompress, before=len(train)),
        after(
            "lzma -9",
            train,
            test,
            lambda: lzma.LZMACompressor(lzma.FORMAT_RAW, filters=lzma_filters),
        ),
        after(f"PPMd, order {PPMD_ORDER}", train, test, Ppmd),
    ]


class Ppmd:
    """PPMd, variant H, with the names of the other compressors' objects."""

    def __init__(self) -> None:
        self.encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, PPMD_MEMORY)

    def compress(self, text: bytes) -> bytes:
        return self.encoder.encode(text)

    def flush(self) -> bytes:
        return self.encoder.flush()


def ppmd(text: bytes) -> bytes:
    encoder = Ppmd()
    return encoder.compress(text) + encoder.flush()


def unppmd(size: int) -> Callable[[bytes], bytes]:
    return lambda code: pyppmd.Ppmd7Decoder(PPMD_ORDER, PPMD_MEMORY).decode(code, size)


def measure(
    name: str,
    text: bytes,
    compress: Callable[[bytes], bytes],
    decompress: Callable[[bytes], bytes],
    before: int = 0,
) -> Row:
    """Compress and decompress, each once."""
    began = perf_counter()
    code = compress(text)
    middle = perf_counter()
    assert decompress(code) == text
    return Row(name, len(code), before, middle - began, perf_counter() - middle, len(text))


def after(name: str, train: bytes, test: bytes, begin: Callable[[], Any]) -> Row:
    """Compress the test books after the training books; how fast it decompresses is not measured.

    The size is that of both less that of the training books.
    """
    sizes = []
    seconds = []
    for text in (train, train + test):
        compressor = begin()
        began = perf_counter()
        sizes.append(len(compressor.compress(text)) + len(compressor.flush()))
        seconds.append(perf_counter() - began)
    difference = seconds[1] - seconds[0]
    return Row(name, sizes[1] - sizes[0], len(train), difference, math.nan, len(test))


def ours(train: bytes, test: bytes, few: int, minutes: float) -> list[Row]:
    """Train rung's models, and compress and decompress the test books under each.

    The neural one is trained for `minutes` and compresses the first `few` bytes.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "train.txt").write_bytes(train)
        for name, how, text in (
            ("rung ngram", {"set": {"held_out": 0}}, test),
            ("rung llama3, 1 M *", {"minutes": minutes, "set": LLAMA}, test[:few]),
        ):
            (place / "test.txt").write_bytes(text)
            run = place / name.split()[1].strip(",")
            rung.train(run.name, place / "train.txt", out=run, **how)
            packed = rung.compress(run, place / "test.txt", place / "packed")
            back = rung.decompress(place / "packed", place / "back")
            assert (place / "back").read_bytes() == text and not packed["is_stored"]
            seconds = packed["seconds"], back["seconds"]
            size = packed["compressed_bytes"]
            rows.append(Row(name, size, model_bytes(run), *seconds, len(text)))
    return rows


def model_bytes(run: Path) -> int:
    """The bytes of what a reader needs of a run: weights, configuration, tokenizer."""
    parts = ("*.safetensors", "config.json", "tokenizer*.json")
    return sum(path.stat().st_size for part in parts for path in run.glob(part))


def print_table(title: str, rows: list[Row]) -> None:
    """Print the rows, that of the fewest bits per byte first."""
    columns = f"{'bytes':>12}{'bits/byte':>11}{'with model':>14}{'kB/s':>9}{'back kB/s':>11}"
    print(f"{title:<20}{columns}")
    for row in sorted(rows, key=lambda row: row.size / row.text):
        speeds = [row.text / 1000 / seconds for seconds in (row.compressing, row.decompressing)]
        shown = ["–" if math.isnan(speed) else f"{speed:,.0f}" for speed in speeds]
        print(
            f"{row.name:<20}{row.size:>12,}{8 * row.size / row.text:>11.3f}"
            f"{row.size + row.before:>14,}{shown[0]:>9}{shown[1]:>11}"
        )
    print(flush=True)


if __name__ == "__main__":
    main()
