"""What is filled in of a recipe: the rung's own arguments of training."""

import pytest

from rung.recipe import make_recipe
from rung.workflows.prepare import choose_learning_rate, fill_batch


@pytest.mark.parametrize(
    ("page", "options"),
    [
        ({}, "embedding_lr_scale=2"),
        ({"train": {"learning_rate": 1e-3}}, "embedding_lr_scale=2"),
        ({"train": {"optim_args": "embedding_lr_scale=1"}}, "embedding_lr_scale=1"),
        ({"train": {"optim": "adamw_torch_fused"}}, None),
        ({"model": {"tie_word_embeddings": True}}, None),
        ({"rung": "gpt2"}, "embedding_lr_scale=4"),
        ({"rung": "rnn"}, None),
    ],
)
def test_the_scale_of_embeddings_is_for_muon_and_a_head_that_is_not_tied(page, options):
    filled = fill_batch(make_recipe({"rung": "llama3", "steps": 1, **page}))
    assert filled.train.get("optim_args") == options


@pytest.mark.parametrize(
    ("page", "rate"),
    [
        ({"model": {"hidden_size": 128}}, 0.018),
        # At the rate of 96 channels, 240 lost 0.11 bits per byte after 3.3 M tokens.
        ({"model": {"hidden_size": 512}}, 0.0045),
        ({"model": {"hidden_size": 32}}, 0.018 * 2**0.5),
        ({"rung": "gpt2", "model": {"n_embd": 1152}}, 0.002),
        ({"model": {"hidden_size": 256}, "train": {"learning_rate": 0.5}}, 0.5),
        ({"base": "runs/x"}, None),
        ({"rung": "ngram", "steps": None}, None),
    ],
)
def test_the_learning_rate_falls_with_the_width(page, rate):
    chosen = choose_learning_rate(make_recipe({"rung": "rnn-attention", "steps": 1, **page}))
    assert chosen.train.get("learning_rate") == (rate and pytest.approx(rate))
