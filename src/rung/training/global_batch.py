"""The rows of a step, dealt out: the same ones to any number of processes, in any number of
parts.
"""

from typing import Any

from transformers import TrainingArguments

from rung import distributed
from rung.errors import RecipeError

ROWS = 8  # of a process at a time, where nothing says how many


def count_rows(arguments: TrainingArguments) -> int:
    """Rows that all processes read in a step."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def find_global_batch_size(arguments: dict[str, Any]) -> int:
    """Rows a step that these fields of `TrainingArguments` make, with as many processes as there
    are now.
    """
    rows = arguments.get("per_device_train_batch_size", ROWS) * arguments.get(
        "gradient_accumulation_steps", 1
    )
    return rows * distributed.world_size()


def share_batch(global_batch_size: int, arguments: dict[str, Any]) -> dict[str, int]:
    """The fields of `TrainingArguments` that make a step so many rows: an even share for each
    process.

    Rows at a time are what `arguments` give, or fewer; gradients are accumulated for the rest.
    Raises `RecipeError` where the rows cannot be shared out evenly.
    """
    rows, left = divmod(global_batch_size, distributed.world_size())
    if left:
        raise RecipeError(
            f"global_batch_size is {global_batch_size}, for {distributed.world_size()} processes: "
            "it must be a multiple of that"
        )
    most = arguments.get("per_device_train_batch_size") or max(
        1, rows // arguments.get("gradient_accumulation_steps", 1)
    )
    at_a_time = next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)
    return {
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": rows // at_a_time,
    }
