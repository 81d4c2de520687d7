"""Rung 5: drop recurrence.

Below:   rnn_attention.py steps through time before it may look back.
New:     only attention, in layers; every position at once; a learned vector says which it is.
Missing: what eight more years found out: rotary positions, RMSNorm, SwiGLU, grouped queries
         (llama3.py).

Radford et al. 2019, over `transformers.GPT2Config` and with the reference's parameter names: what
this saves opens in stock transformers, and published checkpoints open here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GPT2Config, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from rung.models.attention import attend_and_record, causal_mask, join_heads, split_heads
from rung.models.base import AttentionMask, CausalModel, embed
from rung.models.forward_options import Intermediates, accept_forward_options
from rung.models.initialization import (
    init_positions,
    init_residual_projection,
    mark_residual_projection,
)

FUSED_GELUS = {"gelu_new": "gelu_pytorch_tanh"}  # the same function, in one operation


@dataclass
class ForwardContext:
    """The inputs of all layers in one forward pass.

    `seen` counts the tokens, those of the past among them; `rotation` is for Llama's layers.
    """

    positions: Int[Tensor, "#B T"]
    mask: Tensor | None
    cache: Cache | None
    seen: int
    intermediates: Intermediates
    rotation: Any = None

    def check_length(self, limit: int | None) -> None:
        """Raise `ValueError` for a position that is not below `limit`."""
        # `seen` counts padding too. It is asked first: a position must be fetched from the device.
        if limit is not None and self.seen > limit and int(self.positions.max()) >= limit:
            raise ValueError(
                f"{self.seen} tokens, but this model reads {limit}: shorten the text, train with a "
                "larger max_position_embeddings, or in Llama set rope_parameters of rope_type "
                "'llama3'"
            )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int, dropout: float) -> Tensor:
        """Append keys and values to the cache, and attend to all that it holds."""
        if self.cache is not None:  # a cache of fixed size returns all of its memory
            k, v = (t[:, :, : self.seen] for t in self.cache.update(k, v, layer))
        return attend_and_record(q, k, v, self.mask, self.intermediates, dropout)


class GPT2Attention(nn.Module):
    """Multi-head causal attention."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = config.n_head
        self.dropout = config.attn_pdrop
        self.scale = 1.0 if config.scale_attn_weights else math.sqrt(config.n_embd // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        mark_residual_projection(self.c_proj)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        q, k, v = (split_heads(t, self.heads) for t in self.c_attn(x).chunk(3, dim=-1))  # B H T K
        q = q if self.scale == 1.0 else q * self.scale
        x = context.attend(q, k, v, self.layer, self.dropout if self.training else 0.0)
        return self.resid_dropout(self.c_proj(join_heads(x)))


class GPT2MLP(nn.Module):
    """Two layers with a GELU between; `project(outputs, inputs)` makes a layer."""

    def __init__(
        self, config: GPT2Config, project: Callable[[int, int], nn.Module] = Conv1D
    ) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = project(inner, config.n_embd)
        self.c_proj = project(config.n_embd, inner)
        mark_residual_projection(self.c_proj)
        self.act = ACT2FN[FUSED_GELUS.get(config.activation_function, config.activation_function)]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class GPT2Block(GradientCheckpointingLayer):
    """Attention, then MLP, each on a normalised copy and added back."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = x + self.attn(self.ln_1(x), context)
        return x + self.mlp(self.ln_2(x))


class GPT2Model(nn.Module):
    """Positions, blocks, last norm: (B, T, D) embeddings to (B, T, D)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = self.drop(x + self.wpe(context.positions))
        # `generate` lowers `n_layer` while it drafts with the first layers.
        for block in islice(self.h, self.config.n_layer):
            context.intermediates.add_hidden_state(x)
            x = block(x, context)
        x = self.ln_f(x)
        context.intermediates.add_hidden_state(x)
        return x


class GPT2LMHeadModel(CausalModel):
    """GPT-2 with its head, named as in transformers because `config.json` holds the name."""

    config_class = GPT2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    _no_split_modules = ["GPT2Block"]

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.wte = value

    def _init_weights(self, module: nn.Module) -> None:
        """Start with normal weights, positions as sinusoids, and smaller residual projections."""
        super()._init_weights(module)
        if module is self.transformer.wpe:
            init_positions(module)
        if isinstance(module, Conv1D):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        init_residual_projection(module, self.config)

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
        """Return logits (B, T, V) of the token after each one given, by id or by vector."""
        x = embed(self.transformer.wte, input_ids, inputs_embeds)
        context = make_forward_context(
            self.config, x, attention_mask, position_ids, past_key_values, options
        )
        context.check_length(self.max_context_length)
        return self.predict(
            self.transformer(x, context), labels, logits_to_keep, context.cache, options
        )


def make_forward_context(
    config: PreTrainedConfig,
    x: Float[Tensor, "B T D"],
    attention_mask: AttentionMask | None,
    position_ids: Int[Tensor, "#B T"] | None,
    cache: Cache | None,
    options: dict[str, Any],
) -> ForwardContext:
    """Make the context of a pass over the tokens `x`, which follow those in the cache."""
    if cache is None and options["use_cache"]:
        cache = DynamicCache(config=config)
    past = int(cache.get_seq_length()) if cache is not None else 0
    seen = past + x.shape[1]
    positions = make_position_ids(x, attention_mask, past) if position_ids is None else position_ids
    return ForwardContext(
        positions,
        causal_mask(attention_mask, x.shape[1], seen),
        cache,
        seen,
        options["intermediates"],
    )


def make_position_ids(
    x: Shaped[Tensor, "B T *rest"], attention_mask: AttentionMask | None, past: int
) -> Int[Tensor, "#B T"]:
    """Number the tokens, without counting padding on the left."""
    steps = x.shape[1]
    if attention_mask is None or attention_mask.ndim == 4:
        return torch.arange(past, past + steps, device=x.device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -steps:]
