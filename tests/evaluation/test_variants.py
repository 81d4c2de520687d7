"""The switches on the ruler: mixing, the cache and dynamic evaluation give codes too, each beside
the plain score.
"""

import math
from types import SimpleNamespace

import numpy
import pytest
import torch

from rung.evaluation import variants
from rung.evaluation.cache import compute_cache_nll, score_with_cache
from rung.evaluation.documents import TokenizedDocument, tokenize_documents
from rung.evaluation.dynamic import SEGMENT_TOKENS, DynamicModel, DynamicSettings, score_dynamically
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.metrics import confidence_interval
from rung.evaluation.mixture import fit_weights, mix_nll, score_mixture
from rung.evaluation.score import score_documents
from rung.evaluation.variants import count_documents, score_variant
from rung.progress import ProgressMeter
from tests.conftest import NEURAL, SENTENCES

LONG = " ".join(SENTENCES * 8)
CHANGES = (
    "the cat sat on the mat and a dog is not a dog",
    "the cat sat on the mat and a dog is not a log",
)  # one token, the last but the end


def quiet(*_):
    """Tell nobody how far it is."""


def meter():
    return ProgressMeter(quiet, "")


def documents_of(tokenizer, *texts):
    return list(tokenize_documents(texts, tokenizer))


def learn_sentences(model, tokenizer):
    """A few steps: the gradients of random weights say little about those of a trained model."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        for document in documents_of(tokenizer, *SENTENCES):
            ids = torch.tensor([document.ids])
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    return model


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


@pytest.mark.parametrize("name", NEURAL)
def test_learning_at_rate_zero_is_the_plain_score(name, make_tiny, tokenizer):
    model = make_tiny(name, max_position_embeddings=16)
    with DynamicModel(model) as learner:
        learner.measure(documents_of(tokenizer, *SENTENCES), meter())
        still = DynamicSettings(learning_rate=0.0, decay=0.01)
        for document, nats in learner.follow(
            documents_of(tokenizer, LONG, "a cat", ""), still, meter()
        ):
            torch.testing.assert_close(
                nats, compute_nll(model, [document.ids])[0], rtol=1e-6, atol=1e-6
            )
            assert all(
                torch.equal(w, t) for w, t in zip(learner.weights, learner.trained, strict=True)
            )


@pytest.mark.parametrize("name", NEURAL)
def test_dynamic_evaluation_learns_a_repetition_and_leaves_the_model_as_it_was(
    name, make_tiny, tokenizer, monkeypatch
):
    monkeypatch.setattr("rung.evaluation.dynamic.SEGMENT_TOKENS", 16)
    model = learn_sentences(make_tiny(name), tokenizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    texts = ["mats and logs and cats and dogs " * 10] * 2
    plain = score_documents(model, tokenizer, texts)
    found = score_dynamically(model, tokenizer, texts, texts, SENTENCES, quiet)
    assert found.fitted["learning_rate"] > 0
    assert found.bits_per_byte < 0.9 * plain.bits_per_byte
    assert found.difference == pytest.approx(found.bits_per_byte - plain.bits_per_byte, abs=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_an_interrupted_learner_leaves_the_model_as_it_was(make_tiny, tokenizer):
    model = make_tiny("gpt2")
    before = [p.detach().clone() for p in model.parameters()]

    def stop(*_):
        if not all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_dynamically(model, tokenizer, [LONG], [LONG], SENTENCES, stop)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_pull_goes_back_to_the_trained_weights_and_no_further(make_tiny, tokenizer):
    with DynamicModel(make_tiny("rnn")) as learner:
        learner.measure(documents_of(tokenizer, *SENTENCES), meter())
        for weight in learner.weights:
            weight.data += 1.0
            weight.grad = None
        learner._step(DynamicSettings(learning_rate=0.1, decay=1e9))
        for weight, trained, rms in zip(learner.weights, learner.trained, learner.rms, strict=True):
            torch.testing.assert_close(weight, trained + (rms == 0))


@pytest.mark.parametrize("name", ["rnn", "llama3"])
def test_a_step_is_the_formula(name, make_tiny, tokenizer):
    """Krause et al. 2018, section 4.2, with the mean rms as epsilon, by hand."""
    with DynamicModel(make_tiny(name)) as learner:
        learner.measure(documents_of(tokenizer, *SENTENCES), meter())
        every = torch.cat([rms.double().flatten() for rms in learner.rms])
        assert learner.mean_rms == pytest.approx(every.mean().item(), rel=1e-5)
        for weight in learner.weights:
            weight.data += 0.01
            weight.grad = torch.randn_like(weight)
        before = [weight.detach().clone() for weight in learner.weights]
        learner._step(DynamicSettings(learning_rate=0.3, decay=0.02))
        mean = every.mean().item()
        facts = zip(learner.weights, before, learner.trained, learner.rms, strict=True)
        for weight, start, trained, rms in facts:
            pull = (0.02 * rms / mean).clamp(max=1) * (trained - start)
            wanted = start - 0.3 * weight.grad / (rms + mean) + pull
            torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_the_root_mean_square_is_that_of_the_segments_gradients(make_tiny, tokenizer):
    model, documents = make_tiny("rnn"), documents_of(tokenizer, LONG)
    with DynamicModel(model) as learner:
        learner.measure(documents, meter())
        squares = []
        for costs in learner._read(documents[0].ids):
            gradients = torch.autograd.grad(
                costs.sum() / SEGMENT_TOKENS, learner.weights, allow_unused=True
            )
            squares.append([0 if g is None else g**2 for g in gradients])
        assert len(squares) > 2
        for found, *each in zip(learner.rms, *squares, strict=True):
            torch.testing.assert_close(
                found, torch.as_tensor(sum(each) / len(squares)).sqrt().expand_as(found)
            )


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
    for document, found in count_documents(((d, d.ids) for d in documents), meter):
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
