"""How long to train: one setting says it, and a share of the steps needs their number."""

import pytest

from rung.errors import RecipeError
from rung.recipe import make_recipe
from rung.training.arguments import make_training_arguments
from rung.training.settings import TrainSettings
from rung.workflows.tune import Tuning


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (
            {"minutes": 1, "train": {"eval_steps": 0.2}},
            "train.eval_steps is 0.2, a share of the steps",
        ),
        ({"train": {"save_steps": 0.2}}, "train.save_steps is 0.2, a share of the steps"),
        (
            {"minutes": 1, "train": {"lr_scheduler_kwargs": {"num_decay_steps": 9}}},
            "lr_scheduler_kwargs .* in steps",
        ),
        (
            {"minutes": 1, "train": {"warmup_steps": 0.1, "lr_scheduler_type": "inverse_sqrt"}},
            "warmup_steps is 0.1",
        ),
        ({"minutes": 1, "steps": 9, "train": {"num_train_epochs": 2}}, "both given: choose one"),
        ({"steps": 9, "train": {"num_train_epochs": 2}}, "both given: choose one"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [lambda page: make_recipe({"rung": "rnn", **page}), lambda page: Tuning(base="x", **page)],
)
def test_what_counts_steps_is_refused_where_there_are_none_to_count(make, page, message):
    with pytest.raises(RecipeError, match=message):
        make(page)


def test_minutes_and_epochs_end_a_run_together():
    make_recipe({"rung": "rnn", "minutes": 1, "train": {"num_train_epochs": 2}})
    with pytest.raises(RecipeError, match="train.eval_steps is 0.2"):
        make_recipe(
            {"rung": "rnn", "minutes": 1, "train": {"num_train_epochs": 2, "eval_steps": 0.2}}
        )


def test_a_share_of_steps_that_are_given_is_done(tmp_path):
    make_recipe({"rung": "rnn", "steps": 50, "train": {"eval_steps": 0.2, "warmup_steps": 0.1}})
    settings = TrainSettings(steps=50, arguments={"eval_steps": 0.2, "warmup_steps": 0.1})
    assert make_training_arguments(settings, tmp_path, 50).get_warmup_steps(50) == 5
