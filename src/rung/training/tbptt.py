"""Truncated back-propagation through time: a segment begins with the state that the last left.

The gradient ends where a segment begins, the state does not (Mikolov et al. 2010; Zaremba et al.
2014, section 4.1; Merity et al. 2018). The state also flows from one document into the next, and
the model learns what BOS ends. This costs nothing, though documents are scored from an empty state
(benchmarks/training/carried.txt), and a reset inside a segment would break up the kernels that run
over it. At the end of an epoch all streams begin anew.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rung import distributed
from rung.data.packing import TBPTTDataset, TokenDataset
from rung.errors import RecipeError, RunError
from rung.ladder import LADDER
from rung.models import RUNGS, find_rung_name
from rung.models.base import CausalModel, RecurrentState

# In another order a state would meet the text of another stream.
ORDER_ARGUMENTS = ("train_sampling_strategy",)


def check_carry_state(model: type[CausalModel], arguments: dict[str, Any]) -> None:
    """Check that a model can carry its state, and that no argument mixes up the streams.

    Raises `RecipeError` where it cannot, or where one does.
    """
    if not model.can_carry_state:
        name = find_rung_name(model)
        able = ", ".join(name for name in LADDER if RUNGS[name].model_class.can_carry_state)
        raise RecipeError(
            f"carry_state is true, but {name} cannot carry its state; of the rungs, {able} can"
        )
    for key in ORDER_ARGUMENTS:
        if arguments.get(key):
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: leave it out, the streams of carry_state go "
                f"in order"
            )


class StreamStates:
    """The state that each stream was left with, of `count` streams in all.

    A process keeps the states of its batches, each under the number of the batch's first stream.
    """

    def __init__(self, count: int) -> None:
        self.states: dict[int, tuple[Tensor, ...]] = {}
        # Of all processes, once gathered or loaded; each tensor has a row a stream.
        self.gathered: tuple[Tensor, ...] = ()
        self.file = f"carried-{count}.safetensors"

    def add_to(self, batch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the first stream of a `TBPTTDataset` batch, and the model's inputs with its state.

        Raises `RunError` when these streams have no state, though the batch is not their beginning.
        """
        inputs = {key: value for key, value in batch.items() if key not in ("segment", "stream")}
        inputs["use_cache"] = True
        segment, stream = batch["segment"], batch["stream"]
        if segment == 0:
            return stream, inputs
        rows, length = inputs["input_ids"].shape
        state = self.states.get(stream) or tuple(t[stream : stream + rows] for t in self.gathered)
        if not state or len(state[0]) != rows:
            raise RunError(
                f"no state of {rows} streams from number {stream} on: resume with the batch size "
                f"of before"
            )
        state = tuple(t.to(inputs["input_ids"].device) for t in state)
        return stream, inputs | {"past_key_values": RecurrentState(state, segment * length)}

    def store(self, stream: int, state: RecurrentState) -> None:
        """Keep the state of a batch, without the graph that made it."""
        self.states[stream] = tuple(t.detach() for t in state.tensors)

    def gather(self) -> None:
        """Bring the states of all processes to the main one. All processes must call this."""
        found = distributed.gather(
            {stream: tuple(t.cpu() for t in state) for stream, state in self.states.items()}
        )
        states = {stream: state for each in found for stream, state in each.items()}
        parts = zip(*(states[stream] for stream in sorted(states)), strict=True)
        self.gathered = tuple(torch.cat(part) for part in parts)

    def save(self, checkpoint: Path) -> None:
        """Write the gathered states into a checkpoint; any number of processes can load them."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(
            {str(part): states.contiguous() for part, states in enumerate(self.gathered)},
            checkpoint / self.file,
        )

    def load(self, checkpoint: Path) -> None:
        """Load the states of a checkpoint.

        Raises `RunError` when they are not there, damaged, or of another number of streams.
        """
        try:
            named = load_file(checkpoint / self.file)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{checkpoint} has no {self.file} that can be read ({error}): resume with the "
                f"batch size of before, or delete it to resume from the one before"
            ) from error
        self.states, self.gathered = {}, tuple(named[str(part)] for part in range(len(named)))


def make_stream_states(dataset: TokenDataset) -> StreamStates | None:
    """Make the store for the states of a data set's streams, if it has streams."""
    return StreamStates(dataset.count) if isinstance(dataset, TBPTTDataset) else None
