"""Between rungs 5 and 6: GPT-2 with some of its six parts swapped for Llama 3's.

Below:   gpt2.py and llama3.py, which differ in six things at once; every part here is theirs.
New:     one swap at a time, so that what each buys can be measured alone.
Missing: the names of a published model: only rung opens what this saves.

With no swap it computes what `gpt2` does with a head of its own, with all six what `llama3` does.
Attention is Llama's throughout: with biases, with keys for every head and without rotation it is
GPT-2's.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig

from rung.errors import RecipeError, did_you_mean
from rung.models.base import CausalModel, find_padding_idx
from rung.models.config_checks import RungConfig
from rung.models.gpt2 import GPT2MLP, ForwardContext, init_positions, init_residual_projection
from rung.models.llama3 import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaRMSNorm,
    add_shared_offset,
    rotary_cos_sin,
)

SWAPS = {  # name: what it takes out, what it puts in
    "rmsnorm": ("LayerNorm", "RMSNorm"),
    "rotary": ("learned positions", "rotary positions"),
    "swiglu": ("GELU", "SwiGLU"),
    "grouped": ("multi-head", "grouped-query attention"),
    "unbiased": ("biases", "none"),
    "tied": ("untied head", "tied head"),
}


class SwapsConfig(RungConfig):
    """`swaps` names the parts that are Llama's.

    `num_key_value_heads` and `intermediate_size` are for parts that are swapped in.
    """

    model_type = "rung-swaps"

    vocab_size: int = 1
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 672
    max_position_embeddings: int = 256
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    swaps: Sequence[str] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.swaps, str):
            raise RecipeError(
                f"swaps is {self.swaps!r}: it must be a list, as in swaps=[{self.swaps}]"
            )
        for name in self.swaps:
            if name not in SWAPS:
                raise RecipeError(f"unknown swap {name!r}: {did_you_mean(name, SWAPS)}")
        self.swaps = [name for name in SWAPS if name in self.swaps]
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = "tied" in self.swaps

    @property
    def gpt2(self) -> GPT2Config:
        """The configuration that GPT-2's parts are made from."""
        return GPT2Config(**self._shared(), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)

    @property
    def llama3(self) -> LlamaConfig:
        """The configuration that Llama's parts are made from."""
        biased = "unbiased" not in self.swaps
        return LlamaConfig(
            **self._shared(),
            num_key_value_heads=self.num_key_value_heads
            if "grouped" in self.swaps
            else self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            attention_bias=biased,
            mlp_bias=biased,
        )

    def _shared(self) -> dict[str, Any]:
        sizes = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        )
        others = (
            "initializer_range",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "tie_word_embeddings",
        )
        return {key: getattr(self, key) for key in (*sizes, *others)}


class SwapsModel(nn.Module):
    """Positions or rotation, layers, last norm: (B, T, D) embeddings to (B, T, D)."""

    def __init__(self, config: SwapsConfig) -> None:
        super().__init__()
        self.config, self.llama3 = config, config.llama3
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, find_padding_idx(config)
        )
        self.embed_positions = None
        if "rotary" not in config.swaps:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            make_layer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = make_norm(config)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        if self.embed_positions is not None:
            x = x + self.embed_positions(context.positions)
        else:
            context.rotation = rotary_cos_sin(context.positions, self.llama3, x.dtype)
        for layer in islice(self.layers, self.config.num_hidden_layers):
            context.intermediates.add_hidden_state(x)
            x = layer(x, context)
        x = self.norm(x)
        context.intermediates.add_hidden_state(x)
        return x


class SwapsForCausalLM(CausalModel):
    """GPT-2 with its head, and Llama's parts where `config.swaps` names them."""

    config_class = SwapsConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = ["LlamaDecoderLayer"]

    def __init__(self, config: SwapsConfig) -> None:
        super().__init__(config)
        self.model = SwapsModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    # Cache, positions, mask, model and head are the same for every swap.
    forward = LlamaForCausalLM.forward

    def _init_weights(self, module: nn.Module) -> None:
        """Start each part as its own file does, but all residual projections smaller, as GPT-2's.

        There are no induction heads: without rotation none could be given.
        """
        super()._init_weights(module)
        if module is self.model.embed_positions:
            init_positions(module)
        elif module is self.model.embed_tokens and self.model.embed_positions is None:
            add_shared_offset(module)
        init_residual_projection(module, self.config)


def make_layer(config: SwapsConfig, layer: int) -> LlamaDecoderLayer:
    """Make Llama's layer, with GPT-2's parts where they are not swapped."""
    made = LlamaDecoderLayer(config.llama3, layer)
    made.add_module("input_layernorm", make_norm(config))
    made.add_module("post_attention_layernorm", make_norm(config))
    if "swiglu" not in config.swaps:
        bias = "unbiased" not in config.swaps
        made.add_module(
            "mlp",
            GPT2MLP(config.gpt2, lambda outputs, inputs: nn.Linear(inputs, outputs, bias=bias)),
        )
    return made


def make_norm(config: SwapsConfig) -> nn.Module:
    """Make the norm: RMSNorm, which has no bias, or LayerNorm, whose bias goes with the others."""
    if "rmsnorm" in config.swaps:
        return LlamaRMSNorm(config.hidden_size, config.llama3.rms_norm_eps)
    return nn.LayerNorm(
        config.hidden_size, config.gpt2.layer_norm_epsilon, bias="unbiased" not in config.swaps
    )
