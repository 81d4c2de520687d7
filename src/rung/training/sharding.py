"""Models that FSDP2 cuts up over the processes: made whole where they are scored and saved, cut
again where they go on.

A checkpoint holds whole tensors, however the model was trained: a run goes on with any number of
processes, with FSDP2 or without.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from safetensors.torch import load_model
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from rung import distributed
from rung.models.base import CausalModel


def local(tensor: Tensor) -> Tensor:
    """The part of it that this process holds: all of it, unless FSDP2 has cut it up."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, put together from the parts; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(full: Tensor, tensor: DTensor) -> DTensor:
    """`full`, which every process has, cut up as `tensor` is; nothing is sent."""
    full = full.to(tensor.to_local().device)
    return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)


def gather_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state in whole tensors, one after another; on the other processes it is
    empty.
    """
    packed = optimizer.state_dict()
    states: dict[int, dict[str, Any]] = {}
    for number, state in packed["state"].items():
        full = {
            key: whole(value).cpu() if torch.is_tensor(value) else value
            for key, value in state.items()
        }
        states[number] = full if distributed.is_main() else {}
    return {**packed, "state": states}


def load_state(optimizer: torch.optim.Optimizer, packed: dict[str, Any]) -> None:
    """Put back what `gather_state` gave, this process's part of it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {}
    for number, state in packed["state"].items():
        parameter = parameters[number]
        states[number] = {
            key: cut_like(value, parameter)
            if isinstance(parameter, DTensor)
            and torch.is_tensor(value)
            and value.shape == parameter.shape
            else value
            for key, value in state.items()
        }
    optimizer.load_state_dict({**packed, "state": states})


class ShardedTrainer(Trainer):
    """The Trainer, with FSDP2 on CPUs too, and with checkpoints that any number of processes can go
    on from.

    `whole` is what is scored, sampled and saved: the model itself, or with FSDP2 another, on the
    main process alone.
    """

    def __init__(self, model: CausalModel, args: TrainingArguments, **options: Any) -> None:
        self.whole = model
        self.gathered: dict[
            str, Any
        ] = {}  # the optimizer's state, between its gathering and its writing
        if args.fsdp and distributed.is_main():  # what is trained is cut up where it stands
            model = copy.deepcopy(model.cpu())
        super().__init__(model=model, args=args, **options)

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; accelerate cuts up models on accelerators alone, but for CPUs the same
        code will do.
        """
        state = PartialState()
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self.args.bf16:
            # accelerate's own would add gradients up, and round the loss, in it
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy

    @torch.no_grad()
    def find_whole(self) -> CausalModel:
        """The model with all its weights, on the main process; all must call this."""
        if not self.is_fsdp_enabled:
            return self.accelerator.unwrap_model(self.whole)
        for parameter, kept in zip(self.model.parameters(), self.whole.parameters(), strict=True):
            full = whole(parameter)
            if distributed.is_main():
                kept.copy_(full)
        return self.whole

    def put_back(self, checkpoint: Path) -> None:
        """Give the whole model a checkpoint's weights; parts that FSDP2 has cut are left as they
        are.
        """
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(str(checkpoint))
        elif distributed.is_main():
            load_model(self.whole, checkpoint / SAFE_WEIGHTS_NAME)

    def gather(self) -> None:
        """Bring to the main process what a checkpoint holds."""
        if self.is_fsdp_enabled:
            self.find_whole()
            self.gathered = gather_state(self.optimizer)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's; with FSDP2, what `gather` brought."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.whole.save_pretrained(output_dir or self.args.output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            torch.save(self.gathered, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if self.is_fsdp_enabled and resume_from_checkpoint:
            load_model(
                self.model, Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
            )  # before it is cut up
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            read: dict[str, Any] = {
                "map_location": "cpu",
                "weights_only": True,
                "mmap": True,
            }  # no process holds all of it
            load_state(self.optimizer, torch.load(Path(checkpoint) / OPTIMIZER_NAME, **read))
            self.lr_scheduler.load_state_dict(
                torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
            )
