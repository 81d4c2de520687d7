"""Scores of evaluation variants: paired, codes, and reported as they go."""

import math
from types import SimpleNamespace

import pytest
import torch

from rung.evaluation import variants
from rung.evaluation.documents import TokenizedDocument
from rung.evaluation.dynamic import DynamicModel, DynamicSettings
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.metrics import confidence_interval
from rung.evaluation.mixture import mix_nll
from rung.evaluation.variants import meter_documents, score_variant
from rung.progress import ProgressMeter
from tests.conftest import SENTENCES
from tests.evaluation.conftest import documents_of, meter

CHANGES = (
    "the cat sat on the mat and a dog is not a dog",
    "the cat sat on the mat and a dog is not a log",
)  # one token, the last but the end


def test_the_difference_and_its_interval_are_of_paired_documents(tokenizer):
    """What is hard for both blurs nothing: a gain of one bit a byte on every document has no
    width.
    """
    documents = documents_of(tokenizer, *SENTENCES)
    plain = [50.0 * (at + 1) for at in range(len(documents))]
    rows = [
        (d, cost, cost - d.bytes * math.log(2)) for d, cost in zip(documents, plain, strict=True)
    ]
    found = score_variant(rows, {}, SENTENCES, 0.0)
    assert (found.difference, found.difference_low, found.difference_high) == pytest.approx(
        (-1, -1, -1)
    )
    assert found.high - found.low > 1
    noise = [0.0, 3.0, -2.0, 1.0, 4.0]
    rows = [
        (d, cost, cost + more * math.log(2))
        for d, cost, more in zip(documents, plain, noise, strict=True)
    ]
    found, wanted = (
        score_variant(rows, {}, SENTENCES, 0.0),
        confidence_interval(noise, [d.bytes for d in documents]),
    )
    assert (found.difference_low, found.difference_high) == pytest.approx((wanted.low, wanted.high))
    assert found.difference == pytest.approx(sum(noise) / sum(d.bytes for d in documents))
    assert found.validation_bytes == sum(len(text.encode()) for text in SENTENCES)
    assert found.nats == pytest.approx(sum(plain) + sum(noise) * math.log(2))
    assert found.token_perplexity == pytest.approx(
        math.exp(found.nats / sum(len(d.ids) - 1 for d in documents))
    )
    assert found.word_perplexity == pytest.approx(
        math.exp(found.nats / sum(d.words for d in documents))
    )


@pytest.mark.filterwarnings("error")
def test_a_switchs_figures_are_the_rulers(monkeypatch):
    """By hand, of documents with an unknown word and dropped text, which cost their spelling under
    both.
    """
    documents = [
        TokenizedDocument([0, 5, 6, 1], 40, 3, ["héron"], [], ()),
        TokenizedDocument([0, 7, 1], 30, 2, [], ["日"], ()),
        TokenizedDocument([0, 5, 1], 20, 1, [], [], ()),
    ]
    plain, nats, spelling = (
        [20.0, 9.0, 1.0],
        [18.0, 12.0, 0.5],
        [7 * math.log(257), 4 * math.log(257), 0.0],
    )
    monkeypatch.setattr(variants, "time", SimpleNamespace(perf_counter=lambda: 5.0))
    found = score_variant(zip(documents, plain, nats, strict=True), {"theta": 0.5}, ["é", "a"], 2.0)
    costs = [cost + more for cost, more in zip(nats, spelling, strict=True)]
    assert found.nats == pytest.approx(sum(costs))
    assert found.bits_per_byte == pytest.approx(sum(costs) / math.log(2) / 90)
    assert found.difference == pytest.approx((sum(nats) - sum(plain)) / math.log(2) / 90)
    wanted = confidence_interval([cost / math.log(2) for cost in costs], [40, 30, 20])
    assert wanted.low < 0 == found.low
    assert found.high == pytest.approx(wanted.high)
    assert found.log10_word_perplexity == pytest.approx(sum(costs) / 6 / math.log(10))
    assert found.log10_token_perplexity == pytest.approx(sum(costs) / 7 / math.log(10))
    assert (found.seconds, found.validation_bytes) == (3.0, 3)
    assert found.as_dict()["theta"] == 0.5 and found.as_dict()["nats"] == found.nats
    for other in (
        math.inf,
        12.0,
    ):  # the plain model, and perhaps the switch too, gives one document no probability
        found = score_variant(
            zip(documents, [20.0, math.inf, 1.0], [18.0, other, 0.5], strict=True), {}, [], 2.0
        )
        assert (found.difference, found.difference_low, found.difference_high) == (None, None, None)
        assert (found.nats == math.inf) == (other == math.inf) == (found.high is None)


def test_how_far_a_switch_is_is_told_in_documents_and_tokens(monkeypatch):
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr("rung.progress.time", SimpleNamespace(perf_counter=lambda: clock.now))
    heard = []
    meter = ProgressMeter(heard.append, "mix", 2)
    meter.step(5)  # at once: nothing is divided by zero
    documents = [TokenizedDocument(list(range(size)), 1, 1, [], [], ()) for size in (1006, 3)]
    for document, found in meter_documents(((d, d.ids) for d in documents), meter):
        assert found is document.ids
        clock.now += 0.5
    said = [(each.stage, each.done, each.total, each.note) for each in heard]
    assert said[0][:3] == ("mix", 0, 2)
    assert said[1:] == [("mix", 1, 2, "2,020 tokens/s"), ("mix", 2, 2, "1,012 tokens/s")]


def costs_of_all_kinds(make_tiny, tokenizer, text):
    """Each switch's cost of every token of `text`, nothing fitted on it."""
    from rung.evaluation.cache import _cost_both, _read_states

    model = make_tiny("llama3", max_position_embeddings=8)
    document = documents_of(tokenizer, text)[0]
    pair = torch.stack([compute_nll(m, [document.ids])[0] for m in (model, make_tiny("ngram"))])
    _, states = next(_read_states(model, tokenizer, [text]))
    cached = _cost_both(model, document, states, [0.5])
    with DynamicModel(model) as learner:
        learner.measure(documents_of(tokenizer, *SENTENCES), meter())
        _, learned = next(
            learner.follow([document], DynamicSettings(learning_rate=1e-2, decay=1e-3), meter())
        )
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    return document.ids, {
        "mix": mix_nll(pair, half),
        "cache": mix_nll(cached, half),
        "dynamic": learned,
    }


def test_no_token_is_scored_with_what_follows_it(make_tiny, tokenizer, monkeypatch):
    monkeypatch.setattr("rung.evaluation.dynamic.SEGMENT_TOKENS", 3)
    (ids, one), (others, other) = (
        costs_of_all_kinds(make_tiny, tokenizer, text) for text in CHANGES
    )
    assert len(ids) == len(others)
    same = next(i for i, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b)
    assert same > 8
    for switch, nats in one.items():
        torch.testing.assert_close(
            nats[: same - 1], other[switch][: same - 1], rtol=0, atol=0, msg=switch
        )
        assert not torch.equal(nats[same - 1 :], other[switch][same - 1 :])
