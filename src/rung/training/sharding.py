"""FSDP2: a model's parameters in shards over the processes, and in full where they are scored and
saved.

A checkpoint holds full tensors, however the model was trained: a run continues with any number of
processes, with FSDP2 or without.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from rung import distributed


def to_local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, which is all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def to_full(tensor: Tensor) -> Tensor:
    """Put a tensor together from its shards. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(full: Tensor, tensor: DTensor) -> DTensor:
    """Shard `full`, which every process has, as `tensor` is sharded. Nothing is sent."""
    full = full.to(tensor.to_local().device)
    return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)


def allow_cpu_sharding() -> None:
    """Let accelerate shard models on CPUs, which it does on accelerators alone."""
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def reduce_in_float32(accelerator: Accelerator) -> None:
    """Let FSDP2 compute in bfloat16, and add gradients up in float32.

    The policy that accelerate makes for bfloat16 rounds the gradients' sums and the loss to it.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    accelerator.state.fsdp_plugin.mixed_precision_policy = policy


@torch.no_grad()
def gather_weights(sharded: nn.Module, full: nn.Module) -> None:
    """Copy a sharded model's weights into `full` on the main process. All processes must call this.

    Both models have the same parameters in the same order.
    """
    for parameter, target in zip(sharded.parameters(), full.parameters(), strict=True):
        weight = to_full(parameter)
        if distributed.is_main():
            target.copy_(weight)


def gather_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state in full tensors, one gathered after another.

    On all processes but the main one its tensors are left out. All processes must call this.
    """
    packed = optimizer.state_dict()
    states: dict[int, dict[str, Any]] = {}
    for number, state in packed["state"].items():
        full = {
            key: to_full(value).cpu() if torch.is_tensor(value) else value
            for key, value in state.items()
        }
        states[number] = full if distributed.is_main() else {}
    return {**packed, "state": states}


def load_optimizer_state(optimizer: torch.optim.Optimizer, packed: dict[str, Any]) -> None:
    """Load this process's shard of what `gather_optimizer_state` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {}
    for number, state in packed["state"].items():
        parameter = parameters[number]
        states[number] = {
            key: shard_like(value, parameter)
            if isinstance(parameter, DTensor)
            and torch.is_tensor(value)
            and value.shape == parameter.shape
            else value
            for key, value in state.items()
        }
    optimizer.load_state_dict({**packed, "state": states})
