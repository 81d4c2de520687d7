"""What preparing fills in of a recipe: the rung's own arguments of training."""

import pytest

from rung.recipe import make_recipe
from rung.workflows.prepare import fill_batch


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
