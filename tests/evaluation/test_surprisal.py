"""The surprisal of each token of a text."""

import math

import numpy
import pytest

from rung.data.tokenizer_training import build_tokenizer
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from tests.conftest import SENTENCES
from tests.evaluation.conftest import cost_by_hand


def test_bytes_of_one_character_are_one_piece(make_tiny, tokenizer):
    text = "Le café 日本語"
    model = make_tiny("bigram")
    pieces = score_text(model, tokenizer, text)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text for piece in pieces[:-1])
    score = score_documents(model, tokenizer, [text])
    assert sum(piece.tokens for piece in pieces) == score.tokens > len(pieces)
    assert sum(piece.bits for piece in pieces) * math.log(2) == pytest.approx(score.nats, rel=1e-5)


def test_score_text_spells_the_text_and_adds_up(make_tiny, tokenizer):
    model = make_tiny("ngram")
    text = "the cat ∑ sat"
    pieces = score_text(model, tokenizer, text)
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].text == ""
    assert score_documents(model, tokenizer, [text]).nats == pytest.approx(
        sum(p.bits for p in pieces) * math.log(2)
    )
    assert sum(p.bits for p in pieces) * math.log(2) == pytest.approx(
        cost_by_hand(model, tokenizer, text), rel=1e-5
    )


def test_the_bigram_of_the_cat_is_the_formula_by_hand():
    """Five lines, words split at white space; each factor is (C(hw) + 1) / (C(h) + V), worked out
    on paper.
    """
    from rung.data.tokenizer import encode_documents
    from rung.models import RUNGS, make_config

    words = build_tokenizer("word-split", SENTENCES)
    documents = list(encode_documents(SENTENCES, words))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    model = RUNGS["bigram"].model_class.fit(
        make_config("bigram", words, {}), numpy.concatenate(documents), starts
    )
    vocabulary = 4 + len(set(" ".join(SENTENCES).split()))
    assert len(words) == vocabulary == 15
    # (C(hw), C(h)): begin the, the cat, cat sat, sat on, on the, the mat, mat end
    counts = [(3, 5), (1, 6), (1, 3), (3, 3), (3, 4), (2, 6), (2, 3)]
    wanted = math.prod((pair + 1) / (history + vocabulary) for pair, history in counts)
    pieces = score_text(model, words, "the cat sat on the mat")
    assert math.prod(2**-piece.bits for piece in pieces) == pytest.approx(wanted, rel=1e-5)
