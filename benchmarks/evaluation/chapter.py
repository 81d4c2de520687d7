"""Compute the perplexity of the book's bigram as its chapter does, beside the ruler's figures.

The chapter reads rows (a paragraph or a heading each), lower-cased and split on white space. For
each pair of neighbours in a row it takes (C(hw) + 1) / (C(h) + V), where V is the number of words
of the training text. Its formula differs from the ruler's in three ways. A pair with a word that
the training text lacks costs 1e-8, whatever the word is, where the ruler has the word spelled, byte
by byte. Neither the beginning nor the end of a row is predicted. Each row, an empty one too, takes
one from the number of words that is divided by. On all of WikiText-2 (raw) the chapter prints
9393.72.

    python benchmarks/evaluation/chapter.py [TRAIN VALIDATION] > benchmarks/evaluation/chapter.txt

TRAIN and VALIDATION are files with a row of WikiText-2 on each line, empty ones too. Left out, they
are read from the Hub, or from the folder $RUNG_HUB_MIRROR.
"""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy

from rung.data.sources import WIKITEXT, join_articles, load_hub_splits
from rung.data.tokenizer import encode_documents
from rung.data.tokenizer_training import build_tokenizer
from rung.device import choose_device, describe_device
from rung.evaluation.score import Score, score_documents
from rung.models import find_rung, make_config

UNKNOWN_PAIR = 1e-8


def chapter_perplexity(train: Iterable[str], validation: Iterable[str]) -> float:
    """What the chapter's formula gives for rows of text; summed up in float32, as the chapter
    does.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    histories: Counter[str] = Counter()
    vocabulary: set[str] = set()
    for words in map(split_row, train):
        vocabulary.update(words)
        pairs.update(itertools.pairwise(words))
        histories.update(words[:-1])
    total, divisor = numpy.float32(0), 0
    for words in map(split_row, validation):
        chances = [
            numpy.float32(pairs[h, w] + 1) / numpy.float32(histories[h] + len(vocabulary))
            if h in vocabulary and w in vocabulary
            else numpy.float32(UNKNOWN_PAIR)
            for h, w in itertools.pairwise(words)
        ]
        if chances:
            total += numpy.cumsum(numpy.log(numpy.array(chances, dtype=numpy.float32)))[-1]
        divisor += len(words) - 1
    return math.exp(-total / divisor)


def split_row(row: str) -> list[str]:
    """The chapter's words."""
    return row.lower().split()


def score_articles(train: Sequence[str], validation: Sequence[str]) -> Score:
    """What the ruler says of `recipes/book/bigram.yaml` on the rows' articles."""
    articles = list(join_articles(train))
    tokenizer = build_tokenizer("word-split", articles)
    rows = [numpy.array(row) for row in encode_documents(articles, tokenizer)]
    starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    config = make_config("bigram", tokenizer, {})
    model = find_rung("bigram").model_class.fit(config, numpy.concatenate(rows), starts)
    return score_documents(model, tokenizer, list(join_articles(validation)))


def read_rows(paths: Sequence[Path]) -> list[list[str]]:
    """The rows of the train and of the validation split."""
    if paths:
        return [path.read_text(encoding="utf-8").removesuffix("\n").split("\n") for path in paths]
    splits = load_hub_splits(WIKITEXT, "wikitext-2-raw-v1")
    return [list(splits[name]["text"]) for name in ("train", "validation")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    paths = parser.parse_args().files
    if len(paths) not in (0, 2):
        parser.error("name two files, TRAIN and VALIDATION, or none")
    train, validation = read_rows(paths)
    score = score_articles(train, validation)
    print(describe_device(choose_device()))
    print(f"{len(train):,} training rows, {len(validation):,} validation rows")
    print(f"the chapter's perplexity    {chapter_perplexity(train, validation):12,.2f}")
    print(f"the ruler's word perplexity {score.word_perplexity:12,.2f}")
    print(f"     its token perplexity   {score.token_perplexity:12,.2f}")
    print(f"     its bits per byte      {score.bits_per_byte:12.3f}")
    print(
        f"unknown words               {score.unknown_words:12,} of {score.words:,}, spelled by the "
        f"ruler"
    )


if __name__ == "__main__":
    main()
