"""Truncated back-propagation through time: each stretch of a stream begins with the state that the one before left.

The gradient ends where a stretch begins, the state does not (Mikolov et al. 2010; Zaremba et al. 2014, section 4.1;
Merity et al. 2018). The state also flows from one document into the next: what BOS ends, the model learns. Nothing
is lost by that, though the ruler begins a document with no state (docs/results/carry-state.txt), and a reset inside
a stretch would break up the kernels that run over it. At an epoch's end all streams begin anew.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rung.errors import RecipeError, RunError
from rung.models import BESIDE, LADDER, CausalModel
from rung.models.causal import State

# Other batches, or another order, and a state would meet the text of another stream.
FIXED = ("auto_find_batch_size", "train_sampling_strategy")


def check_carry_state(model: type[CausalModel], arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a model that cannot carry its state, or an argument that would mix up the streams."""
    if not model.can_carry_state:
        name = next((name for name, rung in (LADDER | BESIDE).items() if rung.model is model), model.__name__)
        able = ", ".join(name for name, rung in LADDER.items() if rung.model.can_carry_state)
        raise RecipeError(f"--carry-state (carry_state): {name} cannot train so; of the rungs, {able} can")
    for key in FIXED:
        if arguments.get(key):
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: leave it out, the streams of carry_state go in order"
            )


class Carried:
    """What each batch of streams was left with, under the number of its first stream."""

    def __init__(self, count: int, rank: int) -> None:
        self.memories: dict[int, tuple[Tensor, ...]] = {}
        self.file = f"carried-{count}-{rank}.safetensors"  # each process has streams of its own

    def take_up(self, batch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The first stream of a batch of `Streams`, and the model's inputs with the state that it goes on from.

        Raises `RunError` when these streams were not read before, though this is not their beginning.
        """
        inputs = {key: value for key, value in batch.items() if key not in ("stretch", "stream")} | {"use_cache": True}
        stretch, stream = batch["stretch"], batch["stream"]
        if stretch == 0:
            return stream, inputs
        rows, length = inputs["input_ids"].shape
        memory = self.memories.get(stream, ())
        if not memory or len(memory[0]) != rows:
            raise RunError(f"no state of {rows} streams from number {stream} on: resume with the batch size of before")
        memory = tuple(t.to(inputs["input_ids"].device) for t in memory)
        return stream, inputs | {"past_key_values": State(memory, stretch * length)}

    def leave(self, stream: int, state: State) -> None:
        """Keep the state, without the graph that made it."""
        self.memories[stream] = tuple(t.detach() for t in state.tensors)

    def save(self, checkpoint: Path) -> None:
        """Write the states into a checkpoint's folder."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        named = {f"{n}.{part}": t.contiguous() for n, memory in self.memories.items() for part, t in enumerate(memory)}
        save_file(named, checkpoint / self.file)

    def load(self, checkpoint: Path) -> None:
        """Take up the states of a checkpoint.

        Raises `RunError` when they are not there, damaged, or of other streams.
        """
        try:
            named = load_file(checkpoint / self.file)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{checkpoint} has no {self.file} that can be read ({error}): resume with the batch size of before, "
                "or delete it to resume from the one before"
            ) from error
        parts = 1 + max((int(name.split(".")[1]) for name in named), default=-1)
        streams = {int(name.split(".")[0]) for name in named}
        self.memories = {n: tuple(named[f"{n}.{part}"] for part in range(parts)) for n in streams}
