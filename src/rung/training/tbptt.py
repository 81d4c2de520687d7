"""Truncated back-propagation through time: each stretch of a stream begins with the state that the
one before left.

The gradient ends where a stretch begins, the state does not (Mikolov et al. 2010; Zaremba et al.
2014, section 4.1; Merity et al. 2018). The state also flows from one document into the next: what
BOS ends, the model learns. Nothing is lost by that, though the ruler begins a document with no
state (benchmarks/training/carried.txt), and a reset inside a stretch would break up the kernels
that run over it. At an epoch's end all streams begin anew.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rung import distributed
from rung.errors import RecipeError, RunError
from rung.ladder import LADDER
from rung.models import RUNGS, find_rung_name
from rung.models.base import CausalModel, RecurrentState

# Other batches, or another order, and a state would meet the text of another stream.
FIXED = ("train_sampling_strategy",)


def check_carry_state(model: type[CausalModel], arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a model that cannot carry its state, or an argument that would mix up
    the streams.
    """
    if not model.can_carry_state:
        name = find_rung_name(model)
        able = ", ".join(name for name in LADDER if RUNGS[name].model_class.can_carry_state)
        raise RecipeError(
            f"carry_state is true, but {name} cannot carry its state; of the rungs, {able} can"
        )
    for key in FIXED:
        if arguments.get(key):
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: leave it out, the streams of carry_state go "
                f"in order"
            )


class StreamStates:
    """What each batch of streams was left with, under the number of its first stream; of `count`
    streams in all.
    """

    def __init__(self, count: int) -> None:
        self.memories: dict[int, tuple[Tensor, ...]] = {}
        self.all: tuple[
            Tensor, ...
        ] = ()  # of all processes, when they were gathered or loaded: (streams, ...) each
        self.file = f"carried-{count}.safetensors"

    def take_up(self, batch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The first stream of a `TBPTTDataset` batch, and the model's inputs with the state that it

        Raises `RunError` when these streams were not read before, though this is not their
        beginning.
        """
        inputs = {
            key: value for key, value in batch.items() if key not in ("segment", "stream")
        } | {"use_cache": True}
        stretch, stream = batch["segment"], batch["stream"]
        if stretch == 0:
            return stream, inputs
        rows, length = inputs["input_ids"].shape
        memory = self.memories.get(stream) or tuple(t[stream : stream + rows] for t in self.all)
        if not memory or len(memory[0]) != rows:
            raise RunError(
                f"no state of {rows} streams from number {stream} on: resume with the batch size "
                f"of before"
            )
        memory = tuple(t.to(inputs["input_ids"].device) for t in memory)
        return stream, inputs | {"past_key_values": RecurrentState(memory, stretch * length)}

    def leave(self, stream: int, state: RecurrentState) -> None:
        """Keep the state, without the graph that made it."""
        self.memories[stream] = tuple(t.detach() for t in state.tensors)

    def gather(self) -> None:
        """Bring the states of all processes to the main one."""
        found = distributed.gather(
            {stream: tuple(t.cpu() for t in memory) for stream, memory in self.memories.items()}
        )
        memories = {stream: memory for each in found for stream, memory in each.items()}
        parts = zip(*(memories[stream] for stream in sorted(memories)), strict=True)
        self.all = tuple(torch.cat(part) for part in parts)

    def save(self, checkpoint: Path) -> None:
        """Write what was gathered into a checkpoint's folder: any number of processes can share it
        out again.
        """
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(
            {str(part): states.contiguous() for part, states in enumerate(self.all)},
            checkpoint / self.file,
        )

    def load(self, checkpoint: Path) -> None:
        """Take up the states of a checkpoint.

        Raises `RunError` when they are not there, damaged, or of other streams.
        """
        try:
            named = load_file(checkpoint / self.file)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{checkpoint} has no {self.file} that can be read ({error}): resume with the "
                f"batch size of before, "
                "or delete it to resume from the one before"
            ) from error
        self.memories, self.all = {}, tuple(named[str(part)] for part in range(len(named)))
