"""Dropout, in training and nowhere else."""

import pytest
import torch

from rung import runs
from rung.training.dropout import apply_dropout
from rung.training.train import train
from tests.training.conftest import Listener, settings_of


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
