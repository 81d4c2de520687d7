"""Dynamic evaluation: its steps are the formula, and the model stays as it was."""

import pytest
import torch

from rung.evaluation.dynamic import SEGMENT_TOKENS, DynamicModel, DynamicSettings, score_dynamically
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.score import score_documents
from tests.conftest import NEURAL, SENTENCES
from tests.evaluation.conftest import LONG, documents_of, meter, quiet


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
