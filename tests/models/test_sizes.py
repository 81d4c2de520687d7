"""Sizes by name: the published are the published, and each has the weights it says."""

import pytest
import torch

from rung.errors import RecipeError
from rung.models import build_model, count_parameters, find_rung
from rung.models.sizes import SIZES, published_config

SCALED = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0} | {
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
COMMON_LLAMA = {
    "vocab_size": 128_256, "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False,
    "mlp_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "pretraining_tp": 1,
    "use_cache": True, "bos_token_id": 128_000, "eos_token_id": 128_001, "dtype": torch.bfloat16,
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
FIRST = {
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
LONGER = {"max_position_embeddings": 131_072, "rope_parameters": SCALED}
LONGEST = {"max_position_embeddings": 131_072, "rope_parameters": SCALED | {"factor": 32.0}}
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "tie_word_embeddings")  # fmt: skip
COMMON_GPT2 = {
    "vocab_size": 50_257, "n_positions": 1024, "activation_function": "gelu_new",
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02, "n_inner": None, "bos_token_id": 50_256, "eos_token_id": 50_256,
    "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True,
}  # fmt: skip
PUBLISHED = {  # as in each one's config.json
    "llama3-8b": COMMON_LLAMA
    | FIRST
    | dict(zip(FIELDS, (4096, 14_336, 32, 32, 8, 128, False), strict=True)),
    "llama3-70b": COMMON_LLAMA
    | FIRST
    | dict(zip(FIELDS, (8192, 28_672, 80, 64, 8, 128, False), strict=True)),
    "llama3.1-8b": COMMON_LLAMA
    | LONGER
    | dict(zip(FIELDS, (4096, 14_336, 32, 32, 8, 128, False), strict=True)),
    "llama3.1-70b": COMMON_LLAMA
    | LONGER
    | dict(zip(FIELDS, (8192, 28_672, 80, 64, 8, 128, False), strict=True)),
    "llama3.2-1b": COMMON_LLAMA
    | LONGEST
    | dict(zip(FIELDS, (2048, 8192, 16, 32, 8, 64, True), strict=True)),
    "llama3.2-3b": COMMON_LLAMA
    | LONGEST
    | dict(zip(FIELDS, (3072, 8192, 28, 24, 8, 128, True), strict=True)),
    "gpt2": COMMON_GPT2 | {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2-medium": COMMON_GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": COMMON_GPT2 | {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": COMMON_GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_the_published(name):
    config = published_config(name)
    assert {key: getattr(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_have_the_weights_they_say(name):
    size = SIZES[name]
    config = find_rung(name).config_class(
        **size.model, vocab_size=size.vocab_size, bos_token_id=0, eos_token_id=0
    )
    with torch.device("meta"):
        assert count_parameters(build_model(size.rung, config)) == size.parameters
    published = {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
    }
    published |= {
        "llama3-8b": 8_030_261_248,
        "llama3.2-1b": 1_235_814_400,
        "llama3.2-3b": 3_212_749_824,
    }
    assert size.parameters == published.get(
        "gpt2" if name == "gpt2-small" else name, size.parameters
    )


def test_a_name_that_nothing_was_published_by_is_refused():
    with pytest.raises(
        RecipeError, match=r"no model 'llama3.1-9b' was published: did you mean 'llama3.1-8b'"
    ):
        published_config("llama3.1-9b")
    with pytest.raises(RecipeError, match="no model 'llama3-nano'"):
        published_config("llama3-nano")
