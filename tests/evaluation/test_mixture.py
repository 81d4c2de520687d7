"""Mixtures: the weights are the best ones, and the costs those of the sum of probabilities."""

import math

import numpy
import pytest
import torch

from rung.evaluation.likelihood import compute_nll
from rung.evaluation.mixture import fit_weights, mix_nll, score_mixture
from rung.evaluation.score import score_documents
from tests.conftest import SENTENCES
from tests.evaluation.conftest import LONG, documents_of, quiet


def synthetic(share, count=4000):
    """Costs of tokens drawn from `share` of one distribution and the rest of another, under
    each.
    """
    generator = numpy.random.default_rng(0)
    one, other = generator.dirichlet(numpy.ones(20), 2)
    drawn = generator.choice(20, count, p=share * one + (1 - share) * other)
    return -torch.from_numpy(numpy.log(numpy.stack([one[drawn], other[drawn]]))).float()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_the_fitted_weight_is_the_best_of_a_fine_grid(share):
    nats = synthetic(share)
    weights = fit_weights(nats)
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    costs = [mix_nll(nats, torch.stack([w, 1 - w])).mean().item() for w in grid]
    assert weights.sum().item() == pytest.approx(1)
    assert mix_nll(nats, weights).mean().item() <= min(costs) + 2e-6
    assert weights[0].item() == pytest.approx(grid[numpy.argmin(costs)].item(), abs=0.02)


def test_three_models_mix_no_worse_than_any_two():
    generator = torch.Generator().manual_seed(0)
    nats = torch.rand(3, 2000, generator=generator) * 4
    best = mix_nll(nats, fit_weights(nats)).mean()
    for pair in ([0, 1], [0, 2], [1, 2]):
        assert best <= mix_nll(nats[pair], fit_weights(nats[pair])).mean() + 2e-6


def test_the_weights_of_three_models_are_the_best_of_a_fine_grid():
    generator = numpy.random.default_rng(1)
    symbols = generator.dirichlet(numpy.ones(20), 3)
    drawn = generator.choice(20, 1000, p=numpy.array([0.5, 0.3, 0.2]) @ symbols)
    chances = symbols[:, drawn]
    grid = [(i / 50, j / 50, 1 - (i + j) / 50) for i in range(51) for j in range(51 - i)]
    costs = -numpy.log(numpy.array(grid) @ chances).mean(1)
    weights = fit_weights(-torch.from_numpy(numpy.log(chances)))
    mixed = weights.numpy() @ chances
    assert -numpy.log(mixed).mean() <= costs.min() + 1e-6
    assert weights.tolist() == pytest.approx(grid[costs.argmin()], abs=0.03)
    assert (chances / mixed).mean(
        1
    ).max() <= 1 + 1.01e-6  # no model could win by more than this (Cover 1984)


def test_weights_of_next_to_no_tokens():
    assert fit_weights(torch.tensor([[0.1], [5.0]])).tolist() == pytest.approx([1, 0], abs=1e-5)
    for count in (2, 3):
        assert fit_weights(torch.full((count, 4), math.inf)).tolist() == pytest.approx(
            [1 / count] * count
        )
    assert fit_weights(torch.tensor([[1.0, math.inf], [1.0, 2.0]])).tolist() == pytest.approx(
        [0, 1], abs=1e-5
    )
    assert fit_weights(torch.tensor([[0.0, 2000.0], [2000.0, 0.0]])).tolist() == pytest.approx(
        [0.5, 0.5]
    )
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert mix_nll(torch.tensor([[2.0, math.inf], [1.0, 1.0]]), one).tolist() == [2.0, math.inf]


def test_a_mixture_is_the_sum_of_probabilities_fitted_on_the_first_of_the_validation_text(
    make_tiny, tokenizer, monkeypatch
):
    monkeypatch.setattr("rung.evaluation.mixture.FIT_CHARACTERS", len(LONG))
    models, heard = {name: make_tiny(name) for name in ("gpt2", "ngram", "bigram")}, []
    found = score_mixture(models, tokenizer, SENTENCES, [LONG, "a cat"], heard.append)
    assert found.validation_bytes == len(LONG)
    said = [(each.stage, each.done, each.total) for each in heard]
    assert said == [("fit mix", 1, 1), *(("mix", done, 5) for done in range(1, 6))]
    nats, weights = 0.0, found.fitted["weights"]
    for document in documents_of(tokenizer, *SENTENCES):
        costs = {name: compute_nll(model, [document.ids])[0] for name, model in models.items()}
        nats -= (
            sum(weights[name] * costs[name].double().neg().exp() for name in models)
            .log()
            .sum()
            .item()
        )
    assert found.nats == pytest.approx(nats, rel=1e-6)
    held = torch.stack(
        [compute_nll(model, [documents_of(tokenizer, LONG)[0].ids])[0] for model in models.values()]
    )
    assert list(weights) == list(models)
    assert list(weights.values()) == pytest.approx(fit_weights(held).tolist())
    assert found.fitted["renormalized"] == []


def test_a_token_that_no_model_allows_costs_infinitely_much_and_does_not_move_the_weights():
    nats = synthetic(0.3)
    with_one = torch.cat([nats, torch.full((2, 1), math.inf)], dim=1)
    assert torch.equal(fit_weights(with_one), fit_weights(nats))
    assert mix_nll(with_one, fit_weights(nats))[-1].item() == math.inf
    one_allows = mix_nll(
        torch.tensor([[math.inf], [1.0]]), torch.tensor([0.5, 0.5], dtype=torch.float64)
    )
    assert one_allows.item() == pytest.approx(1 + math.log(2))


def test_mixed_with_itself_a_run_is_what_it_was(make_tiny, tokenizer):
    model = make_tiny("ngram")
    plain = score_documents(model, tokenizer, SENTENCES)
    for models in ({"n": model}, {"n": model, "again": model}):
        found = score_mixture(models, tokenizer, SENTENCES, SENTENCES, quiet)
        assert found.nats == pytest.approx(plain.nats, rel=1e-6)
        assert found.difference == pytest.approx(0, abs=1e-6)
        assert sum(found.fitted["weights"].values()) == pytest.approx(1)


def test_a_mixture_is_no_worse_than_its_best_part_on_the_text_it_is_fitted_on(make_tiny, tokenizer):
    models = {name: make_tiny(name) for name in ("gpt2", "bigram", "ngram")}
    mixed = score_mixture(models, tokenizer, SENTENCES, SENTENCES, quiet)
    plain = {name: score_documents(model, tokenizer, SENTENCES) for name, model in models.items()}
    assert mixed.nats <= min(score.nats for score in plain.values()) + 1e-4
    assert mixed.difference == pytest.approx(
        mixed.bits_per_byte - plain["gpt2"].bits_per_byte, abs=1e-6
    )
    assert mixed.difference_low <= mixed.difference <= mixed.difference_high
    assert mixed.validation_bytes == sum(map(len, SENTENCES))
