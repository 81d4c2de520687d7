"""From GPT-2 to Llama 3, one swap at a time: the two ends are the two rungs, and every step between is a model."""

import itertools

import pytest
import torch
import transformers
from conftest import TINY

from rung.errors import RecipeError
from rung.models import build_model, count_parameters, make_config
from rung.models.swaps import SWAPS

SETS = [names for size in range(len(SWAPS) + 1) for names in itertools.combinations(SWAPS, size)]


@pytest.fixture
def ids(tokenizer):
    return torch.randint(3, len(tokenizer), (2, 13), generator=torch.Generator().manual_seed(1))


def shake(model):
    """Biases and norms begin as nothing; give every weight a part in the result."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def from_gpt2(tensors):
    """GPT-2's weights under Llama's names: (out, in), queries, keys and values apart."""
    places = {
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
        "transformer.h": "model.layers",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
    }
    mapped = {}
    for name, tensor in tensors.items():
        for old, new in places.items():
            name = name.replace(old, new)
        if tensor.ndim == 2 and ("mlp" in name or "attn" in name):
            tensor = tensor.T
        if "c_attn" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                mapped[name.replace("attn.c_attn", f"self_attn.{part}_proj")] = piece
        else:
            mapped[name] = tensor
    return mapped


@pytest.mark.parametrize("end", ["gpt2", "llama3"])
def test_the_ends_are_the_two_rungs(end, make_tiny, ids):
    """On logits and on gradients, in float64; Llama's weights keep their names."""
    ours = make_tiny("swaps", swaps=list(SWAPS) if end == "llama3" else []).double()
    reference = {"gpt2": transformers.GPT2LMHeadModel, "llama3": transformers.LlamaForCausalLM}[end]
    theirs = shake(reference(getattr(ours.config, end)).eval()).double()
    rename = from_gpt2 if end == "gpt2" else dict
    ours.load_state_dict(rename(theirs.state_dict()), strict=True)
    outputs = [model(ids, labels=ids) for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-10, atol=1e-12)
    for output in outputs:
        output.loss.backward()
    wanted = rename({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("end", ["gpt2", "llama3"])
def test_the_ends_begin_as_the_two_rungs_do(end, tokenizer):
    """The same spread of every weight; Llama's that write to the residual stream are smaller here."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    names = list(SWAPS) if end == "llama3" else []
    torch.manual_seed(0)
    ours = build_model("swaps", make_config("swaps", tokenizer, {**shape, "swaps": names}))
    theirs = build_model(end, getattr(ours.config, end))
    wanted = from_gpt2(theirs.state_dict()) if end == "gpt2" else theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        scale = 0.5 if end == "llama3" and name.endswith(("o_proj.weight", "down_proj.weight")) else 1
        spread = wanted[name].std() * scale
        torch.testing.assert_close(tensor.std(), spread, rtol=0.2, atol=1e-8, msg=name)


def test_every_set_of_swaps_reads_on_from_its_cache(make_tiny, tokenizer, ids):
    padded = torch.cat([torch.full((2, 3), tokenizer.pad_token_id), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 13] * 2)
    for names in SETS:
        model = shake(make_tiny("swaps", swaps=list(names), num_hidden_layers=1))
        with torch.no_grad():
            full = model(ids).logits
            output = model(padded[:, :9], attention_mask=mask[:, :9], use_cache=True)
            rest = model(padded[:, 9:], attention_mask=mask, past_key_values=output.past_key_values).logits
        torch.testing.assert_close(output.logits[:, 3:], full[:, :6], rtol=1e-4, atol=1e-4, msg=str(names))
        torch.testing.assert_close(rest, full[:, 6:], rtol=1e-4, atol=1e-4, msg=str(names))


def test_each_swap_changes_its_own_part(make_tiny):
    base = make_tiny("swaps", swaps=[])
    width, layers, heads = 32, 2, 2
    sizes = {name: count_parameters(make_tiny("swaps", swaps=[name])) - count_parameters(base) for name in SWAPS}
    assert sizes["rmsnorm"] == -width * (2 * layers + 1)
    assert sizes["rotary"] == -64 * width
    assert sizes["grouped"] == -layers * 2 * (heads * 8) * (width + 1)
    assert sizes["tied"] == -width * base.config.vocab_size
    biases = [name for name, _ in base.named_parameters() if name.endswith("bias")]
    assert biases
    bare = make_tiny("swaps", swaps=["unbiased"])
    assert [n for n, _ in base.named_parameters() if n not in biases] == [n for n, _ in bare.named_parameters()]
    assert abs(sizes["swiglu"]) < 0.05 * count_parameters(base)


def test_what_was_not_learned_is_said(make_tiny, tokenizer):
    long = torch.randint(3, len(tokenizer), (1, TINY["swaps"]["max_position_embeddings"] + 1))
    with pytest.raises(ValueError, match="learned 64 positions"):
        make_tiny("swaps", swaps=[])(long)
    make_tiny("swaps", swaps=["rotary"])(long)


def test_unknown_swaps_are_refused(tokenizer):
    with pytest.raises(RecipeError, match="unknown swap 'rotery': did you mean 'rotary'"):
        make_config("swaps", tokenizer, {"swaps": ["rotery"]})
    with pytest.raises(RecipeError, match=r"swaps is 'rotary': it must be a list, as in swaps=\[rotary\]"):
        make_config("swaps", tokenizer, {"swaps": "rotary"})
    with pytest.raises(RecipeError, match="hidden_size 32 is no multiple of num_attention_heads 3"):
        make_config("swaps", tokenizer, {"hidden_size": 32, "num_attention_heads": 3})
    with pytest.raises(RecipeError, match="num_attention_heads 4 is no multiple of num_key_value_heads 3"):
        make_config("swaps", tokenizer, {"num_attention_heads": 4, "num_key_value_heads": 3})
