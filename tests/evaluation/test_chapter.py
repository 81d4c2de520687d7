"""The chapter's formula in benchmarks/evaluation/chapter.py, against its description written out
with a dense table.
"""

import itertools
import math
import runpy
from pathlib import Path

import pytest
import torch

CHAPTER = runpy.run_path(
    str(Path(__file__).parents[2] / "benchmarks" / "evaluation" / "chapter.py")
)


def dense_perplexity(train, validation):
    """Every pair of words has a cell; a pair with an unknown word costs 1e-8; each row takes one
    from the count.
    """
    rows = [row.lower().split() for row in train]
    vocabulary = sorted({word for row in rows for word in row})
    table = torch.ones(len(vocabulary), len(vocabulary))
    for row in rows:
        for h, w in itertools.pairwise(row):
            table[vocabulary.index(h), vocabulary.index(w)] += 1
    table /= table.sum(1, keepdim=True)
    total, count = 0.0, 0
    for row in (row.lower().split() for row in validation):
        for h, w in itertools.pairwise(row):
            known = h in vocabulary and w in vocabulary
            total += math.log(table[vocabulary.index(h), vocabulary.index(w)] if known else 1e-8)
        count += len(row) - 1
    return math.exp(-total / count)


def test_the_chapters_perplexity_is_its_formula(prose):
    rows = [line.strip() for line in prose[:6000].split("\n")]
    assert "" in rows
    train, validation = rows[:60], rows[60:90]
    expected = dense_perplexity(train, validation)
    assert CHAPTER["chapter_perplexity"](train, validation) == pytest.approx(expected, rel=1e-5)


def test_the_ruler_reads_the_same_rows_as_articles(prose):
    rows = [" = One = ", "", *prose[:3000].split("\n")]
    score = CHAPTER["score_articles"](rows, [*rows[:40], " = Two = ", "unheard of"])
    assert score.documents == 2
    assert score.words == sum(len(row.split()) for row in rows[:40]) + 5
    assert score.unknown_words >= 1
