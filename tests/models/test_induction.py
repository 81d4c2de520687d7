"""Heads that copy from the first step: where they look, and that the rest of the model is left
alone.
"""

import pytest
import torch

from rung.models import attention, build_model, make_config
from rung.models.llama3 import LlamaForCausalLM

LENGTH = 64


@pytest.fixture
def scores(monkeypatch):
    """The attention of each layer, as it was computed."""
    seen = []
    attend = attention.attend

    def watch(q, k, v, mask, dropout):
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        product = q @ keys.mT / q.shape[-1] ** 0.5
        later = torch.ones(product.shape[-2:], dtype=torch.bool).triu(1)
        seen.append(product.masked_fill(later, -torch.inf).softmax(-1))
        return attend(q, k, v, mask, dropout)

    monkeypatch.setattr(attention, "attend", watch)
    return seen


def build(tokenizer, width=128, **fields):
    torch.manual_seed(0)
    fields = {
        "hidden_size": width,
        "max_position_embeddings": 2 * LENGTH,
        "num_hidden_layers": 2,
        **fields,
    }
    return build_model("llama3", make_config("llama3", tokenizer, fields)).eval()


@torch.no_grad()
@pytest.mark.parametrize("heads", [(2, 1), (4, 4), (4, 2)])
def test_the_first_looks_one_token_back_and_the_second_finds_what_followed(
    heads, tokenizer, scores
):
    model = build(tokenizer, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    ids = torch.randint(3, len(tokenizer), (4, LENGTH), generator=torch.Generator().manual_seed(1))
    model(torch.cat([ids, ids], dim=1))
    places = torch.arange(LENGTH + 1, 2 * LENGTH)
    back, match = scores[0][:, 0], scores[1][:, 0]
    assert back[:, places, places - 1].mean() > 0.7
    by_chance = 1 / places.float().mean()
    assert match[:, places, places - LENGTH + 1].mean() > 2 * by_chance
    assert match[:, places, places - LENGTH - 5].mean() < 1.5 * by_chance


def test_small_and_odd_shapes_have_room_for_it(tokenizer):
    for fields in (
        {"width": 8, "num_attention_heads": 1},
        {"width": 6, "num_attention_heads": 3},
        {"width": 64},
    ):
        model = build(tokenizer, **fields)
        assert all(p.isfinite().all() for p in model.parameters())
    build(tokenizer, num_hidden_layers=1)


def test_loaded_weights_are_left_alone(tokenizer, tmp_path):
    model = build(tokenizer)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_a_seed_makes_one_model(tokenizer):
    pairs = zip(build(tokenizer).parameters(), build(tokenizer).parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
