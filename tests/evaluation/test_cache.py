"""The continuous cache is its formula, and helps repetition."""

import math

import numpy
import pytest
import torch

from rung.evaluation.cache import compute_cache_nll, score_with_cache
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.score import score_documents
from tests.conftest import NEURAL, SENTENCES
from tests.evaluation.conftest import LONG, quiet


def cache_by_hand(states, targets, theta, size):
    """The whole distribution at each position but the first, one key at a time."""
    rows = []
    for at in range(1, len(targets)):
        row = numpy.zeros(int(targets.max()) + 1)
        for key in range(max(0, at - size), at):
            row[targets[key]] += math.exp(theta * float(states[at] @ states[key]))
        rows.append(row / row.sum())
    return rows


@pytest.mark.parametrize("size", [3, 7, 100])
@pytest.mark.parametrize("theta", [0.0, 0.7])
def test_the_cache_is_the_formula_and_sums_to_one(theta, size, monkeypatch):
    from rung.evaluation import cache

    monkeypatch.setattr(cache, "QUERIES_AT_ONCE", 5)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(23, 4, generator=generator)
    targets = torch.randint(0, 6, (23,), generator=generator)
    wanted = cache_by_hand(states, targets, theta, size)
    found = compute_cache_nll(states, targets, [theta], size)[0]
    assert found[0] == math.inf
    for at, row in enumerate(wanted, start=1):
        each = [
            compute_cache_nll(
                states[: at + 1], torch.cat([targets[:at], torch.tensor([w])]), [theta], size
            )
            for w in range(6)
        ]
        assert torch.cat(each)[:, -1].neg().exp().numpy() == pytest.approx(row, abs=1e-5)
        assert found[at].neg().exp().item() == pytest.approx(row[targets[at]], abs=1e-5)
        assert row.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", NEURAL)
def test_the_cache_reads_the_states_that_the_head_reads(name, make_tiny, tokenizer):
    from rung.evaluation.cache import _cost_both, _read_states

    model = make_tiny(name, max_position_embeddings=16)
    texts = [LONG, "a cat", ""]
    for document, found in _read_states(model, tokenizer, texts):
        nats = compute_nll(model, [document.ids])[0]
        torch.testing.assert_close(found[:, 0], nats)
        logits = model.get_output_embeddings()(found[:, 1:])
        targets = torch.tensor(document.ids[1:])
        torch.testing.assert_close(
            torch.nn.functional.cross_entropy(logits, targets, reduction="none"), nats
        )
        assert torch.equal(
            _cost_both(model, document, found, [0.0, 0.5])[:, 0], found[0, 0].expand(3)
        )  # empty: nothing to add


@pytest.mark.parametrize("name", ["rnn", "llama3"])
def test_a_cache_helps_repetition_and_without_weight_is_the_plain_score(
    name, make_tiny, tokenizer, monkeypatch
):
    from rung.evaluation import cache

    model = make_tiny(name)
    texts = [LONG, *SENTENCES]
    plain = score_documents(model, tokenizer, texts)
    helped = score_with_cache(model, tokenizer, texts, [LONG], quiet)
    assert helped.bits_per_byte < 0.7 * plain.bits_per_byte
    assert 0 < helped.fitted["weight"] < 1
    assert helped.nats < plain.nats
    assert helped.difference == pytest.approx(helped.bits_per_byte - plain.bits_per_byte, abs=1e-6)
    monkeypatch.setattr(
        cache, "fit_weights", lambda nats: torch.tensor([1.0, 0.0], dtype=torch.float64)
    )
    assert score_with_cache(model, tokenizer, texts, [LONG], quiet).nats == pytest.approx(
        plain.nats, rel=1e-6
    )
