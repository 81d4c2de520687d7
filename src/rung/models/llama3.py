"""Rung 6: modernise.

Below:   gpt2.py learns a vector for each position, normalises with mean and bias, and repeats
         every key.
New:     RMSNorm, rotary positions, grouped queries, SwiGLU, and no biases.
Missing: what comes next is yours.

Llama team 2024, section 3.2, over `transformers.LlamaConfig` and with the reference's parameter
names: what this saves opens in stock transformers, and published checkpoints open here.
"""

import math
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, LlamaConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.models.attention import join_heads, split_heads
from rung.models.base import AttentionMask, CausalModel, embed, find_padding_idx
from rung.models.forward_options import accept_forward_options
from rung.models.fused import is_unmodified, rms_norm
from rung.models.fused_layers import multiply_silu, rotate
from rung.models.gpt2 import ForwardContext, make_forward_context
from rung.models.induction import add_induction_circuit, list_head_weights
from rung.models.initialization import add_shared_offset, is_loaded, mark_residual_projection

# Cosines, and sines of which the first half is negative.
RotaryCosSin = tuple[Float[Tensor, "#B 1 T K"], Float[Tensor, "#B 1 T K"]]


class LlamaRMSNorm(nn.Module):
    """Divide by the root mean square, in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LlamaAttention(nn.Module):
    """Causal attention in which groups of queries share keys and values (Ainslie et al. 2023).

    Queries and keys are rotated where the context has a rotation.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dropout = config.attention_dropout or 0.0
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * config.head_dim, width, bias=bias)
        mark_residual_projection(self.o_proj)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        q = split_heads(self.q_proj(x), self.heads)  # B H T K
        k, v = (split_heads(project(x), self.kv_heads) for project in (self.k_proj, self.v_proj))
        if context.rotation is not None:
            q, k = apply_rotary(q, context.rotation), apply_rotary(k, context.rotation)
        x = context.attend(q, k, v, self.layer, self.dropout if self.training else 0.0)
        return self.o_proj(join_heads(x))


class LlamaMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        mark_residual_projection(self.down_proj)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        inner = multiply_silu(gate, up) if is_unmodified(self.act, type(ACT2FN["silu"])) else None
        return self.down_proj(self.act(gate) * up if inner is None else inner)


class LlamaDecoderLayer(GradientCheckpointingLayer):
    """Attention, then MLP, each on a normalised copy and added back."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """Layers and last norm: (B, T, D) embeddings to (B, T, D)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, find_padding_idx(config)
        )
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        context.rotation = rotary_cos_sin(context.positions, self.config, x.dtype)
        # `generate` lowers `num_hidden_layers` while it drafts with the first layers.
        for layer in islice(self.layers, self.config.num_hidden_layers):
            context.intermediates.add_hidden_state(x)
            x = layer(x, context)
        x = self.norm(x)
        context.intermediates.add_hidden_state(x)
        return x


class LlamaForCausalLM(CausalModel):
    """Llama 3 with its head, named as in transformers because `config.json` holds the name."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = ["LlamaDecoderLayer"]

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def max_context_length(self) -> int:
        """As many tokens as in training, or `factor` times as many with slowed rotations."""
        rope, trained = self.config.rope_parameters, self.config.max_position_embeddings
        if rope["rope_type"] == "default":
            return trained
        return max(trained, int(rope["factor"] * rope["original_max_position_embeddings"]))

    def _init_weights(self, module: nn.Module) -> None:
        """Start with normal weights, and embeddings that share one vector."""
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            add_shared_offset(module)

    def initialize_weights(self) -> None:
        """Initialise weights, then give the first two layers induction heads.

        Layers with weights from a checkpoint are left as they are.
        """
        super().initialize_weights()
        table, layers = self.model.embed_tokens.weight, list(self.model.layers)[:2]
        projections = [
            getattr(layer.self_attn, f"{name}_proj").weight for layer in layers for name in "qkvo"
        ]
        if len(layers) > 1 and not table.is_meta and not any(map(is_loaded, (table, *projections))):
            frequencies = rotary_frequencies(self.config, table.device)
            common, length = table.float().mean(0), self.config.max_position_embeddings
            for first, second in zip(*map(list_head_weights, layers), strict=True):
                add_induction_circuit(first, second, common, frequencies, length)

    @accept_forward_options
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: AttentionMask | None = None,
        position_ids: Int[Tensor, "#B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V) of the token after each one given, by id or by vector.

        Raises `ValueError` for a text longer than `max_context_length`.
        """
        x = embed(self.model.embed_tokens, input_ids, inputs_embeds)
        context = make_forward_context(
            self.config, x, attention_mask, position_ids, past_key_values, options
        )
        context.check_length(self.max_context_length)
        return self.predict(self.model(x, context), labels, logits_to_keep, context.cache, options)


def rotary_cos_sin(
    positions: Int[Tensor, "B T"], config: LlamaConfig, dtype: torch.dtype
) -> RotaryCosSin:
    """Cosines and sines of the angle of each position and channel (Su et al. 2021)."""
    angles = positions[..., None].float() * rotary_frequencies(config, positions.device)  # B T K/2
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotary_frequencies(config: LlamaConfig, device: torch.device) -> Float[Tensor, " half_K"]:
    """Radians a token for each pair of channels; Llama 3.1 slows the slow ones to read further."""
    rope = config.rope_parameters
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.int64).to(
        device=device, dtype=torch.float
    )
    frequencies = 1.0 / rope["rope_theta"] ** (channels / config.head_dim)
    if rope["rope_type"] == "default":
        return frequencies
    # Full turns over the context length of the first training.
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed in full, 1: as it was
    return frequencies * (keep + (1 - keep) / rope["factor"])


def apply_rotary(x: Float[Tensor, "B H T K"], rotation: RotaryCosSin) -> Float[Tensor, "B H T K"]:
    """Turn each pair of channels (i, i + K/2) by its angle."""
    cos, sin = rotation
    if (rotated := rotate(x, cos, sin)) is not None:
        return rotated
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
