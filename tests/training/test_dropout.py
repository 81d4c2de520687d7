"""Dropout, in training and nowhere else."""

import pytest
import torch

from rung import runs
from rung.training.dropout import apply_dropout, drop
from rung.training.train import train
from tests.training.conftest import Listener, settings_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.75, 0.999999])
def test_as_many_are_dropped_as_were_asked_for_and_the_sum_stays(probability, dtype):
    torch.manual_seed(0)
    x = torch.ones(250_001, dtype=dtype, requires_grad=True)
    y = drop(x, probability)
    assert (y == 0).double().mean().item() == pytest.approx(probability, abs=0.003)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)))
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(drop(x, probability), y)
    assert not torch.equal(drop(x, probability), y)


@pytest.mark.parametrize("name", ["rnn", "gpt2"])
def test_a_models_own_dropout_is_quick_while_it_trains(name, make_tiny):
    own = {"rnn": {"dropout": 0.5}, "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5}}[name]
    model = make_tiny(name, **own)
    ids = torch.randint(4, 40, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = model.eval()(ids).logits
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with apply_dropout(model, 0.0):
            drawn.append(model.train()(ids).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], expected)
    assert all("forward" not in vars(part) for part in model.modules())


@pytest.mark.parametrize("name", ["llama3", "swaps"])
def test_dropout_is_hooked_on_for_training_alone(name, make_tiny, tokenizer, packed, tmp_path):
    model = make_tiny(name)
    ids = torch.randint(4, 40, (2, 16), generator=torch.Generator().manual_seed(0))
    with apply_dropout(model, 0.5):
        assert not torch.equal(model.train()(ids).logits, model(ids).logits)
        torch.testing.assert_close(model.eval()(ids).logits, model(ids).logits, rtol=0, atol=0)
    torch.testing.assert_close(model.train()(ids).logits, model(ids).logits, rtol=0, atol=0)
    found = []
    for dropout in (0.0, 0.3):
        (tmp_path / str(dropout)).mkdir()
        settings = settings_of(steps=3, dropout=dropout)
        train(
            make_tiny(name),
            tokenizer,
            packed,
            tmp_path / str(dropout),
            settings,
            Listener().callbacks(),
        )
        found.append(
            [line["loss"] for line in runs.read_metrics(tmp_path / str(dropout)) if "loss" in line]
        )
    assert found[0] != found[1]
