"""The global batch: the rows of a step, split over any number of processes and accumulations."""

from typing import Any

from transformers import TrainingArguments

from rung import distributed
from rung.errors import RecipeError

DEFAULT_BATCH_SIZE = 8  # rows of a process at a time


def count_rows(arguments: TrainingArguments) -> int:
    """Count the rows that all processes read in a step."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def find_global_batch_size(arguments: dict[str, Any]) -> int:
    """Count the rows a step that these fields of `TrainingArguments` make with all processes."""
    rows = arguments.get("per_device_train_batch_size", DEFAULT_BATCH_SIZE) * arguments.get(
        "gradient_accumulation_steps", 1
    )
    return rows * distributed.world_size()


def split_global_batch(global_batch_size: int, arguments: dict[str, Any]) -> dict[str, int]:
    """Return the fields of `TrainingArguments` that give each process an even share of the rows.

    A process reads as many rows at a time as `arguments` say, or fewer, and accumulates gradients
    for the rest. Raises `RecipeError` where the rows cannot be shared evenly.
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
