"""How hard a text is: n-grams, and copies of what stood before."""

import math
from types import SimpleNamespace

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rung.data.packing import PackedTokens
from rung.data.tokenizer import encode_documents
from rung.evaluation.score import score_documents
from rung.models import find_rung, make_config
from rung.workflows.difficulty import find_difficulty, measure_difficulty, nats_with_copying
from tests.conftest import SENTENCES

DOCUMENT = st.lists(st.integers(0, 3), min_size=2, max_size=30)


@given(st.lists(DOCUMENT, min_size=1, max_size=3), st.integers(1, 40))
def test_what_copies_say_is_a_probability(documents, reach):
    """Of all tokens that could stand at a place, whatever came before, the chances add up to
    one.
    """
    *before, last = documents
    even = [torch.full((len(ids) - 1,), math.log(4)) for ids in documents]

    def cost_of(token):
        asked = [*before, [*last[:-1], token]]
        return list(nats_with_copying(zip(asked, even, strict=True), reach))[-1][-1].item()

    assert sum(math.exp(-cost_of(token)) for token in range(4)) == pytest.approx(1)


def test_a_repeated_passage_gets_cheap_and_a_distant_one_does_not():
    passage = list(range(40))
    nats = torch.full((79,), math.log(100))
    near = next(nats_with_copying([(passage * 2, nats)], reach=64))
    assert near[-10:].mean() < 0.2 * math.log(100)
    assert torch.allclose(near[:39], nats[:39].double())
    far = next(nats_with_copying([(passage * 2, nats)], reach=30))
    assert torch.equal(far, nats.double())


def test_the_plain_figure_is_the_rulers(tokenizer, monkeypatch):
    documents = list(encode_documents(SENTENCES * 10, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    packed = PackedTokens(tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts)
    counted = measure_difficulty(tokenizer, packed, SENTENCES, reach=64)
    model = (
        find_rung("ngram")
        .model_class.fit(make_config("ngram", tokenizer, {}), packed.tokens, packed.starts)
        .eval()
    )
    assert counted.ngram == pytest.approx(
        score_documents(model, tokenizer, SENTENCES).bits_per_byte
    )
    with monkeypatch.context() as patched:
        patched.setattr("rung.workflows.difficulty.FIRST_TOKENS", 100)
        assert measure_difficulty(tokenizer, packed, SENTENCES, reach=64) == counted
        assert (
            measure_difficulty(tokenizer, packed, SENTENCES, reach=64, seconds=0.0).ngram
            > counted.ngram
        )  # of a few tokens
    repeated = measure_difficulty(tokenizer, packed, ["qzx jvw kpy " * 20], reach=64)
    assert repeated.copying < 0.7 * repeated.ngram


def test_all_of_a_long_text_is_counted_too_where_time_and_memory_allow(tokenizer, monkeypatch):
    documents = list(encode_documents(SENTENCES * 10, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    packed = PackedTokens(tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts)
    counted = measure_difficulty(tokenizer, packed, SENTENCES, reach=64)
    assert counted.whole == counted.ngram
    monkeypatch.setattr("rung.workflows.difficulty.FITTED_TOKENS", 200)
    monkeypatch.setattr("rung.workflows.difficulty.FIRST_TOKENS", 100)
    found = measure_difficulty(tokenizer, packed, SENTENCES, reach=64)
    assert found.whole == counted.whole < found.ngram
    assert found.is_final
    hurried = measure_difficulty(tokenizer, packed, SENTENCES, reach=64, seconds=0.0)
    assert hurried.whole == hurried.ngram
    assert not hurried.is_final
    small = SimpleNamespace(available=1000)
    monkeypatch.setattr("rung.workflows.difficulty.psutil.virtual_memory", lambda: small)
    cramped = measure_difficulty(tokenizer, packed, SENTENCES, reach=64)
    assert cramped.whole == cramped.ngram == found.ngram
    assert cramped.is_final


def test_a_text_is_counted_once_where_there_was_time(tokenizer, tmp_path, monkeypatch):
    """The rungs of a climb have one text; what time cut short is counted again by the next."""
    documents = list(encode_documents(SENTENCES * 10, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    packed = PackedTokens(tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts)
    corpus = SimpleNamespace(validation={"text": SENTENCES})
    prepared = SimpleNamespace(
        packed_key=str(tmp_path), packed=packed, tokenizer=tokenizer, corpus=corpus
    )
    monkeypatch.setattr("rung.workflows.difficulty.FIRST_TOKENS", 100)
    hurried = find_difficulty(prepared, 64, 0.0)
    found = find_difficulty(prepared, 64, math.inf)
    assert not hurried.is_final and found.is_final
    assert found.ngram < hurried.ngram
    with monkeypatch.context() as patched:
        patched.setattr("rung.workflows.difficulty.measure_difficulty", lambda *_: 1 / 0)
        assert find_difficulty(prepared, 64, 0.0) == found
        assert find_difficulty(prepared, 32, 0.0) is None  # another reach, and counting fails
