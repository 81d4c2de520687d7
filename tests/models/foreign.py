"""Tiny random models of other architectures, as folders that transformers wrote."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import shake

WINDOW = 64  # of those that have one
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": WINDOW,
}
GROUPED = TINY | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA2 = MAMBA | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}
# Attention, state-space and hybrid models; `softcap` changes what the head returns.
ARCHITECTURES = {
    "gpt_neox": TINY,
    "qwen2": GROUPED,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS | {"sliding_window": 16, "final_logit_softcapping": 2.0},
    "mistral": HEADS | {"sliding_window": 16},
    "phi": TINY,
    "opt": TINY | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "smollm3": GROUPED,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": WINDOW,
        "window_size": 16,
    },
    "mamba": MAMBA,
    "mamba2": MAMBA2,
    "falcon_mamba": MAMBA,
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "jamba": GROUPED
    | {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
    },
    "bamba": GROUPED
    | {
        "attn_layer_indices": [1],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "recurrent_gemma": HEADS
    | {
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 32,
        "num_key_value_heads": 1,
    },
}


def build(kind, tokenizer, **settings):
    """A tiny random model of this type, for this tokenizer."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    given = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | ends
    config = AutoConfig.for_model(kind, **given | ARCHITECTURES[kind] | settings)
    torch.manual_seed(0)
    return shake(AutoModelForCausalLM.from_config(config)).eval()
