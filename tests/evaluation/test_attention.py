"""Attention made visible: the weights that transformers hands out where it is asked to be slow."""

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from rung.evaluation.attention import attention_shape, read_attention
from tests.conftest import TINY

IDS = [0, 7, 12, 31, 7, 12, 45, 3, 60]
LOOKING = ["rnn-attention", "gpt2", "llama3", "swaps"]


@pytest.mark.parametrize(
    "settings", [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}], ids=str
)
@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_the_weights_are_those_of_transformers(name, settings, make_tiny, tmp_path):
    if name == "gpt2" and settings:
        settings = {
            "scale_attn_by_inverse_layer_idx": settings["num_key_value_heads"] == 1,
            "scale_attn_weights": False,
        }
    model = make_tiny(name, **settings)
    for parameter in model.parameters():
        parameter.data.mul_(4)  # a new model looks everywhere alike
    model.save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(reference).__module__.startswith("transformers.")
    with torch.no_grad():
        wanted = torch.cat(reference(torch.tensor([IDS]), output_attentions=True).attentions)
    found = read_attention(model, IDS)
    assert found.shape == (*attention_shape(model), len(IDS), len(IDS))
    assert found.std(-1).max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LOOKING)
def test_every_token_looks_at_itself_and_what_was_before(name, make_tiny):
    model = make_tiny(name)
    weights = read_attention(model, IDS)
    assert weights.shape[:2] == attention_shape(model)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    assert not weights.triu(1).any() and (weights >= 0).all()
    torch.testing.assert_close(read_attention(model, IDS[:4]), weights[..., :4, :4])


def test_only_this_thread_is_watched(make_tiny):
    model, done = make_tiny("llama3"), threading.Event()

    def read_on():
        with torch.no_grad():
            while not done.is_set():
                model(torch.tensor([IDS]))

    other = threading.Thread(target=read_on)
    other.start()
    try:
        assert {len(read_attention(model, IDS)) for _ in range(20)} == {2}
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("name", sorted(set(TINY) - set(LOOKING)))
def test_the_others_have_none(name, make_tiny):
    assert attention_shape(make_tiny(name)) == (0, 0)


def test_one_token_has_nothing_to_look_back_at(make_tiny):
    with pytest.raises(ValueError, match="two tokens"):
        read_attention(make_tiny("gpt2"), IDS[:1])
