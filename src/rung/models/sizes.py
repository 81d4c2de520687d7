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
    """A size of a rung: the fields of its config, and how many weights it has with a vocabulary of
    `vocab_size`.

    That is the published one, or else of a tokenizer for as much text as suits the size. `context`
    is the published one, where that is not what the model was trained on first.
    """

    rung: str
    parameters: int
    vocab_size: int
    model: dict[str, Any]
    context: int

    @property
    def is_published(self) -> bool:
        """Whether there are weights of this size."""
        return self.vocab_size == PUBLISHED_VOCAB_SIZE[self.rung]

    def as_dict(self) -> dict[str, Any]:
        """The fields, and the bytes of the weights in bfloat16."""
        return asdict(self) | {"is_published": self.is_published, "bytes": 2 * self.parameters}


_CONFIGS: dict[str, type[PreTrainedConfig]] = {"gpt2": GPT2Config, "llama3": LlamaConfig}
PUBLISHED_VOCAB_SIZE = {"gpt2": 50_257, "llama3": 128_256}


def _gpt2(
    parameters: int,
    width: int,
    layers: int,
    context: int = 1024,
    vocab_size: int = PUBLISHED_VOCAB_SIZE["gpt2"],
) -> Size:
    model = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": context}
    return Size(
        rung="gpt2", parameters=parameters, vocab_size=vocab_size, model=model, context=context
    )


def _llama3(
    parameters: int, widths: tuple[int, int], heads: tuple[int, int], layers: int, **more: Any
) -> Size:
    """`widths`: of the residual stream and inside the MLP; `heads`: of queries, and of keys and
    values.
    """
    factor, vocab_size = (
        more.pop("factor", None),
        more.pop("vocab_size", PUBLISHED_VOCAB_SIZE["llama3"]),
    )
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
    """Llama 3's rotation; with a factor, its slow channels turn more slowly by it (Llama 3.1)."""
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


def _small(vocab_size: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
    }


SIZES: dict[str, Size] = {
    "gpt2-nano": _gpt2(957_184, 128, 4, 256, 1024),
    "gpt2-micro": _gpt2(5_853_184, 256, 6, 256, 4096),
    "gpt2-mini": _gpt2(33_870_848, 512, 8, 512, 16_384),
    "gpt2-small": _gpt2(124_439_808, 768, 12),
    "gpt2-medium": _gpt2(354_823_168, 1024, 24),
    "gpt2-large": _gpt2(774_030_080, 1280, 36),
    "gpt2-xl": _gpt2(1_557_611_200, 1600, 48),
    "llama3-nano": _llama3(918_656, (128, 384), (2, 1), 4, **_small(1024, 256)),
    "llama3-micro": _llama3(5_475_584, (256, 704), (4, 2), 6, **_small(4096, 256)),
    "llama3-mini": _llama3(31_990_272, (512, 1408), (8, 4), 8, **_small(16_384, 512)),
    "llama3-small": _llama3(100_682_496, (768, 2048), (12, 4), 12, **_small(32_768, 1024)),
    "llama3-8b": _llama3(8_030_261_248, (4096, 14_336), (32, 8), 32),
    "llama3-70b": _llama3(70_553_706_496, (8192, 28_672), (64, 8), 80),
    "llama3.1-8b": _llama3(8_030_261_248, (4096, 14_336), (32, 8), 32, factor=8.0),
    "llama3.1-70b": _llama3(70_553_706_496, (8192, 28_672), (64, 8), 80, factor=8.0),
    "llama3.2-1b": _llama3(
        1_235_814_400, (2048, 8192), (32, 8), 16, factor=32.0, tie_word_embeddings=True
    ),
    "llama3.2-3b": _llama3(
        3_212_749_824, (3072, 8192), (24, 8), 28, factor=32.0, tie_word_embeddings=True
    ),
}


def resolve_size(name: str, model: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The rung that `name` is, or is a size of; and its `model` fields with those that the size
    fills in.
    """
    size = SIZES.get(name)
    if size is None:
        return name, model
    given = {_CONFIGS[size.rung].attribute_map.get(key, key) for key in model}
    return size.rung, {key: value for key, value in size.model.items() if key not in given} | model


def published_config(name: str) -> PreTrainedConfig:
    """The configuration of a published model as its `config.json` has it: of `gpt2`, `llama3-8b`,
    `llama3.2-1b`, ...

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
