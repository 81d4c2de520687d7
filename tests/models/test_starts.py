"""Starts: a rung scores like the one below it, or copies, before its first step."""

import numpy
import pytest
import torch

from rung.data.packing import PackedTokens
from rung.data.tokenizer import encode_documents
from rung.errors import RecipeError
from rung.models import build_model, find_rung, make_config
from rung.models.relays import PRIOR_PAIRS
from rung.models.starts import start_model
from rung.recipe import make_recipe
from tests.conftest import SENTENCES

LENGTH = 24


@pytest.fixture(scope="module")
def packed(tokenizer):
    documents = list(encode_documents(SENTENCES * 4, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    return PackedTokens(tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts)


def build(rung, tokenizer, **fields):
    torch.manual_seed(0)
    fields = {"hidden_size": 96, **find_rung(rung).model, **fields}
    return build_model(rung, make_config(rung, tokenizer, fields)).eval()


def begin(model, rung, start, packed):
    start_model(model, rung, start, packed.tokens, packed.starts)
    return model


def count_bigram(packed, size):
    """log P(b | a) of the bigram whose prior is the unigram, by counting pair after pair."""
    ids = packed.tokens.astype(int).tolist()
    shares = torch.bincount(torch.tensor(ids), minlength=size).float() + 0.5
    counts = torch.zeros(size, size)
    for place in range(1, len(ids)):
        if place not in set(packed.starts.tolist()):
            counts[ids[place - 1], ids[place]] += 1
    counts += PRIOR_PAIRS * shares / shares.sum()
    return (counts / counts.sum(1, keepdim=True)).log()


@torch.no_grad()
@pytest.mark.parametrize("rung", ["rnn", "rnn-attention"])
def test_with_room_for_it_the_start_scores_like_the_bigram(rung, tokenizer, packed):
    """Within 1% of its nats; with fewer relays it is between the unigram and the bigram."""
    size = len(tokenizer)
    ids = torch.from_numpy(packed.tokens[:200].astype(numpy.int64))[None]
    costs = {}
    for width in (2 * size, size // 4):
        model = begin(build(rung, tokenizer, hidden_size=width), rung, "bigram", packed)
        costs[width] = model(ids, labels=ids).loss.item()
    unigram = begin(build(rung, tokenizer), rung, "unigram", packed)(ids, labels=ids).loss.item()
    bigram = -count_bigram(packed, size)[ids[0, :-1], ids[0, 1:]].mean().item()
    assert costs[2 * size] == pytest.approx(bigram, rel=0.01)
    assert bigram < costs[size // 4] < unigram


@torch.no_grad()
def test_the_unigram_start_scores_like_the_unigram(tokenizer, packed):
    model = begin(build("rnn", tokenizer), "rnn", None, packed)
    shares = model(torch.tensor([[5]])).logits.softmax(-1)[0, 0]
    counts = torch.bincount(torch.from_numpy(packed.tokens.astype(int)), minlength=len(tokenizer))
    torch.testing.assert_close(shares, (counts + 0.5) / (counts + 0.5).sum(), rtol=0.2, atol=1e-4)


@torch.no_grad()
def test_attention_copies_what_followed_before(tokenizer, packed):
    """In a text of random tokens that is read twice, the second reading costs less."""
    ids = torch.randint(3, len(tokenizer), (4, LENGTH), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([ids, ids], dim=1)
    gains = {}
    for start in ("unigram", "induction"):
        model = begin(build("rnn-attention", tokenizer), "rnn-attention", start, packed)
        nats = -model(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        gains[start] = (nats[:, : LENGTH - 1].mean() - nats[:, LENGTH:].mean()).item()
    assert abs(gains["unigram"]) < 0.1
    assert gains["induction"] > 1.0


@torch.no_grad()
def test_attention_copies_no_more_surely_the_wider_it_is(tokenizer, packed):
    """That of 592 channels was sure of what it copied, and training lost all copying."""
    text = torch.from_numpy(packed.tokens[: 4 * LENGTH].astype(numpy.int64))[None]
    costs = []
    for width in (128, 640):
        model = build("rnn-attention", tokenizer, hidden_size=width)
        begin(model, "rnn-attention", "induction", packed)
        costs.append(model(text, labels=text).loss.item())
    assert costs[1] == pytest.approx(costs[0], abs=0.25)


@torch.no_grad()
@pytest.mark.parametrize("rung", ["gpt2", "llama3"])
@pytest.mark.parametrize("fields", [{}, {"hidden_size": 256}, {"num_attention_heads": 4}])
def test_a_transformer_copies_and_knows_how_common_tokens_are(rung, fields, tokenizer, packed):
    ids = torch.randint(3, len(tokenizer), (4, LENGTH), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([ids, ids], dim=1)
    context = {"max_position_embeddings": 2 * LENGTH, **fields}
    gains, costs = {}, {}
    text = torch.from_numpy(packed.tokens[: 2 * LENGTH].astype(numpy.int64))[None]
    for start in ("random", "induction"):
        model = begin(build(rung, tokenizer, **context), rung, start, packed)
        nats = -model(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        gains[start] = (nats[:, : LENGTH - 1].mean() - nats[:, LENGTH:].mean()).item()
        costs[start] = model(text, labels=text).loss.item()
    assert abs(gains["random"]) < 0.1
    assert gains["induction"] > 0.5
    assert costs["induction"] < costs["random"] - 0.3


def test_a_transformer_without_room_keeps_its_weights(tokenizer, packed):
    for rung, fields, remedy in (
        ("gpt2", {"tie_word_embeddings": True}, "tie_word_embeddings=false"),
        ("llama3", {"num_hidden_layers": 1}, "two layers"),
        ("gpt2", {"hidden_size": 16, "num_attention_heads": 1}, "larger hidden_size"),
    ):
        before = build(rung, tokenizer, **fields)
        after = begin(build(rung, tokenizer, **fields), rung, None, packed)
        assert all(map(torch.equal, before.parameters(), after.parameters()))
        with pytest.raises(RecipeError, match=remedy):
            begin(build(rung, tokenizer, **fields), rung, "induction", packed)
    long = build("llama3", tokenizer, max_position_embeddings=1 << 20)
    begin(long, "llama3", None, packed)
    assert all(p.isfinite().all() for p in long.parameters())


def test_what_a_model_has_no_room_for_is_left_out_or_refused(tokenizer, packed):
    tied = {"tie_word_embeddings": True, "head_bias": False}
    before = build("rnn-attention", tokenizer, **tied)
    after = begin(build("rnn-attention", tokenizer, **tied), "rnn-attention", None, packed)
    assert all(map(torch.equal, before.parameters(), after.parameters()))
    for fields, remedy in (
        (tied, "head_bias=true"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=false"),
        ({"cell": "gru"}, "cell=lstm"),
        ({"num_hidden_layers": 2}, "one layer"),
    ):
        with pytest.raises(RecipeError, match=remedy):
            begin(build("rnn", tokenizer, **fields), "rnn", "bigram", packed)
    with pytest.raises(RecipeError, match="plain_attention=false"):
        model = build("rnn-attention", tokenizer, plain_attention=True)
        begin(model, "rnn-attention", "induction", packed)


def test_a_start_that_a_rung_does_not_have_is_refused():
    for rung, start in (("rnn", "induction"), ("gpt2", "unigram"), ("ngram", "bigram")):
        with pytest.raises(RecipeError, match=f"start is '{start}'"):
            make_recipe({"rung": rung, "start": start})
    assert make_recipe({"rung": "llama3", "start": "random"}).start == "random"
