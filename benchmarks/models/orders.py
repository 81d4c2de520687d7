"""Score n-grams of several orders beside those of any length, and smoothings beside each other.

CORPUS is what `rung train` takes. Its test split is scored, in bits per byte: in words and in byte
pairs, with Kneser-Ney of order 1 to 7, and with every smoothing at order 5.

    python benchmarks/models/orders.py CORPUS > benchmarks/models/orders.txt
"""

import argparse
import time
from collections.abc import Iterable

import numpy

from rung.data.corpus import Corpus, load_corpus
from rung.data.tokenizer import encode_documents
from rung.data.tokenizer_training import build_tokenizer, suggest_vocab_size
from rung.device import choose_device, describe_device, retain_freed_memory
from rung.evaluation.score import Score, score_documents
from rung.models import count_parameters, find_rung, make_config
from rung.models.ngram.smoothing import SMOOTHINGS

ORDERS = (1, 2, 3, 4, 5, 6, 7)
COMPARED = 5  # the order at which smoothings are compared


def prepare(kind: str, corpus: Corpus):
    """A tokenizer and the train split in its tokens."""
    size = (
        suggest_vocab_size(sum(len(text.encode()) for text in corpus.train["text"]))
        if kind == "bpe"
        else None
    )
    tokenizer = build_tokenizer(kind, corpus.train["text"], size)
    rows = [
        numpy.array(row, dtype=numpy.uint32)
        for row in encode_documents(corpus.train["text"], tokenizer)
    ]
    starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    return tokenizer, numpy.concatenate(rows), starts


def measure(name: str, settings: dict, prepared, texts: Iterable[str]) -> tuple[int, float, Score]:
    """N-grams (of any length: tokens), seconds to fit, and what the texts cost."""
    tokenizer, tokens, starts = prepared
    config = make_config(name, tokenizer, settings)
    before = time.perf_counter()
    model = find_rung(name).model_class.fit(config, tokens, starts)
    seconds = time.perf_counter() - before
    return count_parameters(model), seconds, score_documents(model, tokenizer, texts)


def print_row(label: str, size: int, seconds: float, score: Score) -> None:
    print(
        f"  {label:<16}{size:>12,}{seconds:>9.1f}{score.token_perplexity:>13,.1f}"
        f"{score.word_perplexity:>14,.0f}{score.bits_per_byte:>10.3f} "
        f"({score.low:.2f}-{score.high:.2f})",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    chosen = parser.parse_args()
    retain_freed_memory()
    corpus = load_corpus(chosen.corpus, "paragraphs")
    texts = corpus.test["text"]
    print(f"$ python benchmarks/models/orders.py {chosen.corpus}")
    print(
        f"{describe_device(choose_device())}"
        f"; test text {sum(len(text.encode()) for text in texts):,} "
        f"bytes"
    )
    for kind, words in (("whitespace", "words"), ("bpe", "byte pairs")):
        prepared = prepare(kind, corpus)
        print(f"\n{len(prepared[1]):,} {words} of train text, {len(prepared[0]):,} different\n")
        head = (
            f"  {'order':<16}{'n-grams':>12}{'fit (s)':>9}{'token ppl':>13}{'word ppl':>14}"
            f"{'bits per byte':>22}"
        )
        print(f"{head}\n {'-' * (len(head) + 2)}")
        for order in ORDERS:
            print_row(str(order), *measure("ngram", {"order": order}, prepared, texts))
        print_row("inf", *measure("infini-gram", {}, prepared, texts))
        print()
        for smoothing in SMOOTHINGS:
            if smoothing != "stupid-backoff":  # which is no distribution
                settings = {"order": COMPARED, "smoothing": smoothing}
                print_row(f"{COMPARED} {smoothing}", *measure("ngram", settings, prepared, texts))


if __name__ == "__main__":
    main()
