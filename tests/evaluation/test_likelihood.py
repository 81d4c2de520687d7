"""Each token is scored once, whatever the windows, batches and memory."""

import math
import os
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from rung.errors import RunError
from rung.evaluation.likelihood import choose_stride, compute_nll, sliding_windows
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.models import find_rung
from tests.conftest import NEURAL, SENTENCES, TINY, Largest, overflow
from tests.evaluation.conftest import LONG, cost_by_hand


@pytest.mark.parametrize("name", NEURAL)
def test_weights_whose_sums_are_no_numbers_have_no_score(name, make_tiny, tokenizer):
    untied = {} if name == "swaps" else {"tie_word_embeddings": False}
    model = overflow(make_tiny(name, **untied))
    assert all(weight.isfinite().all() for weight in model.parameters())
    asks = [
        lambda: score_documents(model, tokenizer, SENTENCES),
        lambda: score_text(model, tokenizer, "the cat"),
    ]
    for ask in asks:
        with pytest.raises(
            RunError, match="the model computes (nan|inf) in place of a number: its weights are too"
        ):
            ask()


@pytest.mark.parametrize("name", list(TINY))
def test_the_batch_does_not_change_the_score(name, make_tiny, tokenizer, monkeypatch):
    model = make_tiny(name)
    texts = [*SENTENCES, LONG, "", "a"]
    whole = score_documents(model, tokenizer, texts)
    monkeypatch.setattr("rung.evaluation.score.DOCUMENTS_AT_ONCE", 1)
    monkeypatch.setattr("rung.evaluation.likelihood.LOGITS_AT_ONCE", 1)
    monkeypatch.setattr("rung.evaluation.likelihood.STATEFUL_TOKENS", 7)
    alone = score_documents(model, tokenizer, texts)
    assert alone.nats == pytest.approx(whole.nats, rel=1e-5)
    assert alone.tokens == whole.tokens


@pytest.mark.parametrize("name", ["gpt2", "llama3", "rnn-attention"])
def test_the_window_scores_each_token_once_with_enough_before_it(name, make_tiny, tokenizer):
    model = make_tiny(name, max_position_embeddings=16)
    ids = [*tokenizer(LONG).input_ids, tokenizer.eos_token_id]
    assert len(ids) > 100
    costs = compute_nll(model, [ids])[0]
    assert len(costs) == len(ids) - 1
    for at in range(len(costs)):  # prediction `at` is of token at + 1
        end = 16 if at < 16 else 16 + (at - 16) // 8 * 8 + 8
        end = min(end, len(costs))
        window = torch.tensor([ids[max(0, end - 16) : at + 1]])
        with torch.no_grad():
            wanted = -model(window).logits[0, -1].log_softmax(-1)[ids[at + 1]].item()
        assert costs[at].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["bigram", "ngram", "rnn"])
def test_a_carried_state_sees_the_whole_document(name, make_tiny, tokenizer, monkeypatch):
    monkeypatch.setattr("rung.evaluation.likelihood.STATEFUL_TOKENS", 10)
    model = make_tiny(name)
    score = score_documents(model, tokenizer, [LONG])
    assert score.nats == pytest.approx(cost_by_hand(model, tokenizer, LONG), rel=1e-5)
    assert score.window is None
    assert score.low is None


@pytest.mark.parametrize("window", range(1, 8))
def test_windows_score_each_prediction_once_half_a_window_on(window):
    stride = max(1, window // 2)
    for predictions in range(4 * window + 2):
        found = list(sliding_windows(predictions, window))
        assert [at for _, end, done in found for at in range(done, end)] == list(range(predictions))
        assert found[:1] == [(0, min(window, predictions), 0)] * (predictions > 0)
        assert all(
            first == end - window and done - first >= window - stride
            for first, end, done in found[1:]
        )
        assert len(found) == (predictions > 0) + max(0, math.ceil((predictions - window) / stride))


@pytest.mark.parametrize("name", ["rnn", "rnn-attention", "llama3"])
def test_documents_of_any_length_side_by_side_cost_what_each_does_alone(
    name, make_tiny, tokenizer, monkeypatch
):
    """Of a window, one more and one less, of strides more; short ones among long ones, and the
    empty one.
    """
    model = make_tiny(name, **({} if name == "rnn" else {"max_position_embeddings": 8}))
    generator = torch.Generator().manual_seed(0)
    sizes = [18, 2, 9, 3, 14, 8, 10, 13, 6, 2, 11, 12]  # tokens, of which the first is not scored
    documents = [torch.randint(4, 250, (size,), generator=generator).tolist() for size in sizes]
    wanted = []
    with torch.no_grad():
        for ids in documents:
            ends = [8 if at < 8 else 8 + (at - 8) // 4 * 4 + 4 for at in range(len(ids) - 1)]
            firsts = [0 if name == "rnn" else max(0, min(end, len(ids) - 1) - 8) for end in ends]
            logits = [
                model(torch.tensor([ids[first : at + 1]])).logits[0, -1]
                for at, first in enumerate(firsts)
            ]
            wanted.append(
                -torch.stack(logits).log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
            )
    monkeypatch.setattr("rung.evaluation.likelihood.STATEFUL_TOKENS", 5)
    for at_once in (1, 11 * model.config.vocab_size, 40 * model.config.vocab_size, 2**24):
        monkeypatch.setattr("rung.evaluation.likelihood.LOGITS_AT_ONCE", at_once)
        for found, each in zip(compute_nll(model, documents), wanted, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)


def test_the_window_and_its_stride_are_said(make_tiny, tokenizer):
    for window, stride in ((1, 1), (2, 1), (3, 1), (4, 2), (9, 4)):
        assert choose_stride(window) == stride
    score = score_documents(make_tiny("gpt2", max_position_embeddings=16), tokenizer, SENTENCES)
    assert (score.window, score.stride) == (16, 8)


@pytest.mark.parametrize("name", ["rnn-attention", "gpt2", "llama3", "swaps", "rnn", "bigram"])
def test_the_logits_of_a_whole_window_never_stand_in_memory(
    name, make_tiny, tokenizer, monkeypatch
):
    """64 MiB hold the logits and what a softmax makes of them, of whatever window and
    vocabulary.
    """
    model, ids = make_tiny(name), list(range(4, 68))
    whole = compute_nll(model, [ids])[0]
    monkeypatch.setattr("rung.evaluation.likelihood.LOGITS_AT_ONCE", 8 * len(tokenizer))
    with Largest() as largest:
        parts = compute_nll(model, [ids])[0]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert largest.bytes < 64 * len(tokenizer) * 4 / 2


def read_memory(name):
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


def test_a_window_of_a_large_vocabulary_is_scored_in_little_memory():
    """The logits of 2,048 positions of 128,256 tokens are 1 GB, and were held three times."""
    resets = Path("/proc/self/clear_refs")
    if not os.access(resets, os.W_OK):
        pytest.skip("the most memory that a process held is counted anew on Linux alone")
    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = LlamaConfig(vocab_size=128_256, max_position_embeddings=2048, **small)
    model, ids = find_rung("llama3").model_class(config).eval(), list(range(4, 2053))
    compute_nll(model, [ids[:9]])
    resets.write_text("5")
    before = read_memory("VmRSS")
    costs = compute_nll(model, [ids])[0]
    assert (
        read_memory("VmHWM") - before < 160 * 2**20
    )  # 95 are taken: logits, their softmax, attention
    assert costs.mean() == pytest.approx(math.log(128_256), rel=0.05)


@pytest.mark.parametrize("name", ["rnn", "gpt2"])
def test_the_head_reads_each_prediction_once(name, make_tiny, tokenizer):
    """Neither padding, nor what a window reads again: in a small model the head is most of it."""
    model = make_tiny(name).eval()
    documents = [[0, *range(3, 3 + size)] for size in (1, 40, 200)]
    read = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: read.append(logits.shape[:-1].numel())
    )
    compute_nll(model, documents)
    hook.remove()
    assert sum(read) == sum(len(ids) - 1 for ids in documents)
