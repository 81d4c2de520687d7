"""Models that FSDP2 has cut up over the processes: their whole weights, and updates that need whole matrices."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rung import ranks


def local(tensor: Tensor) -> Tensor:
    """The part of it that this process holds: all of it, unless FSDP2 has cut it up."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, put together from the parts; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(full: Tensor, tensor: Tensor) -> Tensor:
    """The part of `full` that this process holds of `tensor`; nothing is sent."""
    if not isinstance(tensor, DTensor):
        return full
    return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()


@torch.no_grad()
def gather_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of `source`, cut up, into `target` on the main process, one tensor at a time."""
    for parameter, kept in zip(source.parameters(), target.parameters(), strict=True):
        full = whole(parameter)
        if ranks.is_main():
            kept.copy_(full)
