"""The rows of a step, shared out among processes and the batches that each accumulates."""

import pytest

from rung import distributed
from rung.errors import RecipeError
from rung.training.arguments import find_global_batch_size, split_global_batch


@pytest.mark.parametrize(
    ("rows", "processes", "arguments", "at_a_time", "parts"),
    [
        (8, 1, {}, 8, 1),
        (8, 2, {}, 4, 1),
        (8, 2, {"per_device_train_batch_size": 8}, 4, 1),
        (64, 2, {"per_device_train_batch_size": 8}, 8, 4),
        (24, 2, {"per_device_train_batch_size": 8}, 6, 2),
        (16, 2, {"gradient_accumulation_steps": 4}, 2, 4),
        (2, 2, {"gradient_accumulation_steps": 4}, 1, 1),
    ],
)
def test_a_global_batch_is_shared_out(rows, processes, arguments, at_a_time, parts, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    made = split_global_batch(rows, arguments)
    assert made == {"per_device_train_batch_size": at_a_time, "gradient_accumulation_steps": parts}
    assert find_global_batch_size(made) == rows


def test_a_global_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(
        RecipeError, match="global_batch_size is 8, for 3 processes: it must be a multiple of that"
    ):
        split_global_batch(8, {})
