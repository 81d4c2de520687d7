"""Initial weights of the rungs that are trained.

No function here touches weights that came from a checkpoint, but `init_residual_projection`, which
relies on Hugging Face's own guard.
"""

import math
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

# Names of the layers that write to the residual stream, in GPT-2 and in Llama.
RESIDUAL_PROJECTIONS = ("c_proj", "o_proj", "down_proj")
POSITION_RMS = 0.12  # root mean square of a position's vector; a token's is 0.02
SHARED_OFFSET_STD = 0.1  # of each channel of the vector that all tokens share; their own is 0.02


def is_loaded(parameter: Tensor) -> bool:
    """Whether its values came from a checkpoint, so that no initialisation may touch them."""
    return getattr(parameter, "_is_hf_initialized", False)


def init_recurrence(module: nn.Module) -> None:
    """Give a recurrent layer orthogonal recurrent weights, Xavier input weights and zero biases.

    The forget gate's bias of an LSTM starts at 1 (Jozefowicz et al. 2015, section 2.2).
    """
    if not isinstance(module, nn.RNNBase):
        return
    for name, parameter in module.named_parameters():
        if is_loaded(parameter):
            continue
        if "weight_hh" in name:
            for gate in parameter.data.chunk(parameter.shape[0] // module.hidden_size):
                nn.init.orthogonal_(gate)
        elif "weight_ih" in name:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
            if isinstance(module, nn.LSTM) and "bias_ih" in name:
                nn.init.ones_(parameter.data[module.hidden_size : 2 * module.hidden_size])


def init_embedding(table: nn.Embedding, std: float) -> None:
    """Start token embeddings with this standard deviation; padding stays zero."""
    if not is_loaded(table.weight):
        nn.init.normal_(table.weight, std=std)
        if table.padding_idx is not None:
            nn.init.zeros_(table.weight[table.padding_idx])


@torch.no_grad()
def init_head_bias(head: nn.Module, counts: Int[Tensor, " V"]) -> None:
    """Start a head's bias as the log of each token's share of a text, with one half added to all.

    Learning how often each token comes is then not left to the first steps.
    """
    shares = (counts + 0.5) / (counts + 0.5).sum()
    cast(Tensor, head.bias).copy_(shares.log())


def init_positions(table: nn.Embedding) -> None:
    """Start learned positions as sinusoids.

    Neighbouring positions are then alike, and one shift of the channels serves them all.
    """
    if not is_loaded(table.weight):
        table.weight.data.copy_(POSITION_RMS * sinusoids(*table.weight.shape))


def sinusoids(positions: int, channels: int) -> Float[Tensor, "positions channels"]:
    """Sines and cosines of mean square 1, from one radian a position to one in 10,000.

    Vaswani et al. 2017, section 3.5.
    """
    frequencies = 10_000.0 ** -(torch.arange(0, channels, 2) / channels)
    angles = torch.arange(positions)[:, None] * frequencies
    return math.sqrt(2) * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :channels]


def mark_residual_projection(module: nn.Module) -> None:
    """Mark a layer that writes to the residual stream, for `init_residual_projection`."""
    vars(module)["writes_residual"] = True


def init_residual_projection(module: nn.Module, config: PreTrainedConfig) -> None:
    """Start a marked layer smaller, by the square root of twice the depth.

    Radford et al. 2019, section 2.3: as many layers add to the residual stream.
    """
    if "writes_residual" in vars(module):
        std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        nn.init.normal_(cast(Tensor, module.weight), std=std)


def add_shared_offset(table: nn.Embedding) -> None:
    """Add one random vector to all token embeddings.

    Without biases, queries and keys then hold a part that no token changes and that rotation turns.
    So attention by position alone, to the token before, is there from the first step. A tied head
    adds the same number to all logits, which changes no probability.
    """
    if not is_loaded(table.weight):
        table.weight.data += SHARED_OFFSET_STD * torch.randn(table.embedding_dim).to(table.weight)
