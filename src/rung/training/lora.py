"""LoRA (Hu et al. 2022) by PEFT: a change of low rank to each matrix is trained in its place.

PEFT's model is trained. A plain model with the change added to its weights is scored, sampled and
saved; it opens anywhere.
"""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rung import runs
from rung.errors import RecipeError
from rung.models.base import CausalModel
from rung.training.callbacks import TrainingCallbacks

# In the run's folder, for `PeftModel.from_pretrained(base, folder)`.
ADAPTER_FOLDER = "adapter"
# PEFT's `lora_alpha / r`. It is the same at every rank, so that one learning rate serves all.
LORA_SCALE = 2.0
# Muon orthogonalizes the step of a matrix, and the factors of a change of low rank are no matrices
# of their own. AdamW learned more of the new text and forgot less of the old, for less work
# (benchmarks/training/adapters.txt).
LORA_ARGUMENTS: dict[str, Any] = {
    "optim": "adamw_torch_fused",
    "learning_rate": 5e-3,
    "weight_decay": 0.0,
}


def check_lora(rank: Any, base: str | None) -> None:
    """Raise `RecipeError` for a rank below 1, without a model to adapt, or without PEFT."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise RecipeError(
            f"lora is {rank!r}: it must be a rank, a whole number from 1, as in --set lora=8"
        )
    if not base:
        raise RecipeError(
            f"lora is {rank}, but there is no model to adapt: a change of low rank to random "
            f"weights learns little; name a trained one with --from RUN"
        )
    if importlib.util.find_spec("peft") is None:
        raise RecipeError("lora needs PEFT, which is not installed: pip install 'rung[lora]'")


class LoraAdapter:
    """An adapter of rank `rank` for every matrix of `model` but embeddings and head.

    `peft_model` is trained. It shares the model's weights and changes none of them; `merge` adds
    the trained change to those of `model`.
    """

    def __init__(self, model: CausalModel, rank: int) -> None:
        from peft import LoraConfig, get_peft_model

        self.model = model
        cells = {
            name: module for name, module in model.named_modules() if isinstance(module, nn.RNNBase)
        }
        head = model.get_output_embeddings()
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
        config = LoraConfig(
            r=rank,
            lora_alpha=round(LORA_SCALE * rank),
            target_modules=[name for name, layer in layers.items() if layer is not head],
            # A cell computes with its matrices itself, so they are adapted as parameters.
            target_parameters=[
                f"{name}.{key}" for name, cell in cells.items() for key in _matrices_of(cell)
            ],
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
            task_type="CAUSAL_LM",
        )
        self.peft_model = get_peft_model(_copy(model, cloned=set()), config)

    @torch.no_grad()
    def merge(self) -> CausalModel:
        """Add the change as it is by now to the plain model's weights, and return that model.

        The base weights of `peft_model` stay as they are: adding to them and subtracting again
        would round them, and a resumed run begins from those of the base.
        """
        from peft.tuners.lora import LoraLayer

        layers = [
            module.get_base_layer()
            for module in self.peft_model.modules()
            if isinstance(module, LoraLayer)
        ]
        changed = {id(p) for layer in layers for p in layer.parameters()}
        merged = _copy(self.peft_model.base_model, cloned=changed).merge_and_unload()
        for name, parameter in self.model.named_parameters():
            parameter.data = merged.get_parameter(name).data
        return self.model.eval()

    def merge_for(self, callbacks: TrainingCallbacks) -> TrainingCallbacks:
        """Make the callbacks evaluate and sample the merged model, whatever they are given."""
        return replace(
            callbacks,
            evaluate=lambda _: callbacks.evaluate(self.merge()),
            sample=lambda _: callbacks.sample(self.merge()),
        )

    def save(self, folder: Path) -> None:
        """Write the change alone into the run's folder."""
        (folder / ADAPTER_FOLDER).mkdir(exist_ok=True)
        runs.save_model(folder / ADAPTER_FOLDER, self.peft_model)


def _matrices_of(cell: nn.RNNBase) -> list[str]:
    return [name for name, parameter in cell.named_parameters() if parameter.ndim == 2]


def _copy(model: Any, cloned: set[int]) -> Any:
    """Copy a module with parameters of its own, over the same memory.

    Parameters whose id is in `cloned` get memory of their own.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(
            p.data.clone() if id(p) in cloned else p.data, requires_grad=p.requires_grad
        )
    return copy.deepcopy(model, memo)
