"""Sizes by name: the published GPT-2 and Llama 3 models, and smaller ones for laptops and one GPU.

A size's name stands wherever a rung's does. The model is then trained from scratch: its vocabulary
is the tokenizer's, its context the one that the published model began with. `published_config` is
the published configuration itself. Radford et al. 2019, table 2; Llama team 2024, table 3; Llama
3.2 by its model card. The name `gpt2` is the rung's wherever a rung is meant: the published 124
million are `gpt2-small` too.
"""

from dataclasses import asdict, dataclass
from typing import Any

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from rung.errors import RecipeError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of a rung: the fields of its config, and its number of weights.

    `vocab_size` is the published vocabulary, or else suits a tokenizer for the text that the size
    can learn. `context` is that of the published model, which may be longer than the one it was
    first trained with, in `model`.
    """

    rung: str
    parameters: int
    vocab_size: int
    model: dict[str, Any]
    context: int

    @property
    def is_published(self) -> bool:
        """Whether weights of this size were published."""
        return self.vocab_size == PUBLISHED_VOCAB_SIZE[self.rung]

    def as_dict(self) -> dict[str, Any]:
        """The fields, and the bytes of the weights in bfloat16."""
        return asdict(self) | {"is_published": self.is_published, "bytes": 2 * self.parameters}


_CONFIGS: dict[str, type[PreTrainedConfig]] = {"gpt2": GPT2Config, "llama3": LlamaConfig}
PUBLISHED_VOCAB_SIZE = {"gpt2": 50_257, "llama3": 128_256}


def _gpt2(
    parameters: int,
    *,
    width: int,
    layers: int,
    context: int = 1024,
    vocab_size: int = PUBLISHED_VOCAB_SIZE["gpt2"],
) -> Size:
    model: dict[str, Any] = {
        "n_embd": width,
        "n_layer": layers,
        "n_head": width // 64,
        "n_positions": context,
        "tie_word_embeddings": True,
    }
    return Size(
        rung="gpt2", parameters=parameters, vocab_size=vocab_size, model=model, context=context
    )


def _llama3(
    parameters: int,
    *,
    widths: tuple[int, int],
    heads: tuple[int, int],
    layers: int,
    **more: Any,
) -> Size:
    """`widths` are of the residual stream and of the MLP; `heads` of queries and of keys."""
    factor = more.pop("factor", None)
    vocab_size = more.pop("vocab_size", PUBLISHED_VOCAB_SIZE["llama3"])
    model: dict[str, Any] = {
        "hidden_size": widths[0],
        "intermediate_size": widths[1],
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope_parameters(factor),
        "tie_word_embeddings": False,
        **more,
    }
    context = 131_072 if factor else model["max_position_embeddings"]
    return Size(
        rung="llama3", parameters=parameters, vocab_size=vocab_size, model=model, context=context
    )


def rope_parameters(factor: float | None) -> dict[str, Any]:
    """Llama 3's rotary positions; with a factor, as in 3.1, slow channels turn slower by it."""
    if not factor:
        return {"rope_type": "default", "rope_theta": 500_000.0}
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _tied(*, vocab_size: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
    }


SIZES: dict[str, Size] = {
    "gpt2-nano": _gpt2(957_184, width=128, layers=4, context=256, vocab_size=1024),
    "gpt2-micro": _gpt2(5_853_184, width=256, layers=6, context=256, vocab_size=4096),
    "gpt2-mini": _gpt2(33_870_848, width=512, layers=8, context=512, vocab_size=16_384),
    "gpt2-small": _gpt2(124_439_808, width=768, layers=12),
    "gpt2-medium": _gpt2(354_823_168, width=1024, layers=24),
    "gpt2-large": _gpt2(774_030_080, width=1280, layers=36),
    "gpt2-xl": _gpt2(1_557_611_200, width=1600, layers=48),
    "llama3-nano": _llama3(
        918_656, widths=(128, 384), heads=(2, 1), layers=4, **_tied(vocab_size=1024, context=256)
    ),
    "llama3-micro": _llama3(
        5_475_584, widths=(256, 704), heads=(4, 2), layers=6, **_tied(vocab_size=4096, context=256)
    ),
    "llama3-mini": _llama3(
        31_990_272,
        widths=(512, 1408),
        heads=(8, 4),
        layers=8,
        **_tied(vocab_size=16_384, context=512),
    ),
    "llama3-small": _llama3(
        100_682_496,
        widths=(768, 2048),
        heads=(12, 4),
        layers=12,
        **_tied(vocab_size=32_768, context=1024),
    ),
    "llama3-8b": _llama3(8_030_261_248, widths=(4096, 14_336), heads=(32, 8), layers=32),
    "llama3-70b": _llama3(70_553_706_496, widths=(8192, 28_672), heads=(64, 8), layers=80),
    "llama3.1-8b": _llama3(
        8_030_261_248, widths=(4096, 14_336), heads=(32, 8), layers=32, factor=8.0
    ),
    "llama3.1-70b": _llama3(
        70_553_706_496, widths=(8192, 28_672), heads=(64, 8), layers=80, factor=8.0
    ),
    "llama3.2-1b": _llama3(
        1_235_814_400,
        widths=(2048, 8192),
        heads=(32, 8),
        layers=16,
        factor=32.0,
        tie_word_embeddings=True,
    ),
    "llama3.2-3b": _llama3(
        3_212_749_824,
        widths=(3072, 8192),
        heads=(24, 8),
        layers=28,
        factor=32.0,
        tie_word_embeddings=True,
    ),
}


def resolve_size(name: str, model: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the rung that `name` is, or is a size of, and `model` with the size's fields."""
    size = SIZES.get(name)
    if size is None:
        return name, model
    given = {_CONFIGS[size.rung].attribute_map.get(key, key) for key in model}
    return size.rung, {key: value for key, value in size.model.items() if key not in given} | model


def published_config(name: str) -> PreTrainedConfig:
    """The configuration of a published model, such as `llama3.2-1b`, as its `config.json` has it.

    Raises `RecipeError` where no model of that name was published.
    """
    size = SIZES.get("gpt2-small" if name == "gpt2" else name)
    if size is None or not size.is_published:
        known = ["gpt2", *(n for n, s in SIZES.items() if s.is_published)]
        raise RecipeError(f"no model {name!r} was published: {did_you_mean(name, known)}")
    if size.rung == "gpt2":
        return GPT2Config(**size.model, architectures=["GPT2LMHeadModel"])
    fields = {**size.model, "max_position_embeddings": size.context, "vocab_size": size.vocab_size}
    ids = {"bos_token_id": 128_000, "eos_token_id": 128_001}
    return LlamaConfig(**fields, **ids, architectures=["LlamaForCausalLM"], dtype="bfloat16")
