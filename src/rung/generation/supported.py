"""Tell which models `step.c` computes."""

import copy

import torch
from torch import nn
from transformers.initialization import no_init_weights

from rung.models.base import CausalModel
from rung.models.config_checks import PROBABILITY_FIELDS
from rung.models.fused import is_unmodified
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.llama3 import LlamaForCausalLM

GELUS = ("gelu_new", "gelu_pytorch_tanh")


def is_supported(model: CausalModel) -> bool:
    """Whether `step.c` computes what `model` does.

    The model must have exactly the modules and shapes that its configuration makes: no adapter, no
    parametrization, no quantised layer and no hook, and no dropout at work.
    """
    config = copy.deepcopy(model.config)
    if type(model) is GPT2LMHeadModel:
        knows_activation = config.activation_function in GELUS
    elif type(model) is LlamaForCausalLM:
        knows_activation = config.hidden_act == "silu"
    else:
        return False
    drops = model.training and any(getattr(config, key, None) for key in PROBABILITY_FIELDS)
    with torch.device("meta"), no_init_weights():
        wanted = type(model)(config)
    parts, kinds = (
        dict(model.named_modules()),
        {name: type(part) for name, part in wanted.named_modules()},
    )
    is_whole = parts.keys() == kinds.keys() and all(
        is_unmodified(parts[name], kind) for name, kind in kinds.items()
    )
    return knows_activation and not drops and is_whole and _shapes(model) == _shapes(wanted)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {
        name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)
    }
