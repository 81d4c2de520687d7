"""Causal language models of other architectures: tiny random ones, held to transformers' own
forward pass and `generate`, and to lm-evaluation-harness.
"""

import pytest
import torch

from rung.evaluation import likelihood
from rung.evaluation.documents import tokenize_documents
from rung.evaluation.likelihood import compute_nll
from rung.generation import batching
from rung.generation.batching import ContinuousBatch
from rung.generation.decoder import Decoder, generate_tokens
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.models.foreign import ForeignForCausalLM
from rung.serve.logprobs import score_prompt
from tests.conftest import SENTENCES
from tests.models.foreign import ARCHITECTURES, build

TEXTS = (
    "the cat sat on the mat",
    "a dog is not a cat,  and naïve",
    "an unheard-of log\n\n the dog",
)
LONG = " ".join(SENTENCES * 6)  # more than two windows of 64
GREEDY = Sampling(temperature=0, max_new_tokens=6)


@pytest.fixture(scope="module")
def opened(tokenizer):
    """A function that returns the model of this type: the one of transformers, and ours of it."""
    made = {}

    def find(kind):
        if kind not in made:
            inner = build(kind, tokenizer)
            made[kind] = inner, ForeignForCausalLM(inner)
        return made[kind]

    return find


@pytest.fixture(scope="module")
def documents(tokenizer):
    return [document.ids for document in tokenize_documents([*TEXTS, LONG], tokenizer)]


def cost_by_hand(inner, ids):
    with torch.no_grad():
        logits = inner(torch.tensor([ids[:-1]])).logits[0].double()
    return -logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_costs_are_those_of_its_own_forward_pass(kind, opened, documents):
    inner, model = opened(kind)
    found = compute_nll(model, documents)
    for ids, nats in zip(documents[:-1], found, strict=False):
        torch.testing.assert_close(nats.double(), cost_by_hand(inner, ids), atol=2e-5, rtol=1e-5)
    window = model.context_length or len(documents[-1])
    begun = cost_by_hand(inner, documents[-1][: window + 1])
    torch.testing.assert_close(found[-1][:window].double(), begun, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_total_is_that_of_the_harness(kind, opened, tokenizer, documents):
    """Its rolling log-likelihood, to which the end of a text does not belong."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rung[eval]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    inner, model = opened(kind)
    window = model.context_length or 2048
    judge = HFLM(
        pretrained=inner,
        backend="causal",
        tokenizer=tokenizer,
        max_length=window,
        batch_size=1,
        add_bos_token=False,
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in [*TEXTS, LONG]]
    totals = judge.loglikelihood_rolling(requests, disable_tqdm=True)
    for nats, total in zip(compute_nll(model, documents[:-1]), totals, strict=False):
        assert -nats[:-1].double().sum().item() == pytest.approx(total, rel=1e-6)
    # Of a text longer than its window the harness reads pieces that share a token: the same text,
    # cut by its own code, costs the same here.
    pieces = list(
        map(
            make_disjoint_window,
            get_rolling_token_windows(
                documents[-1][1:-1],
                prefix_token=tokenizer.bos_token_id,
                max_seq_len=window,
                context_len=1,
            ),
        )
    )
    costs = compute_nll(model, [[*context, *scored] for context, scored in pieces])
    mine = sum(
        nats[-len(scored) :].double().sum().item()
        for nats, (_, scored) in zip(costs, pieces, strict=True)
    )
    assert -mine == pytest.approx(totals[-1], rel=1e-6)
    assert len(pieces) > 1 or window > 100


def test_a_state_is_carried_through_a_document_and_chunks_change_nothing(
    opened, documents, monkeypatch
):
    assert {kind for kind in ARCHITECTURES if opened(kind)[1].context_length is None} == {"mamba2"}
    inner, model = opened("mamba2")
    monkeypatch.setattr(likelihood, "STATEFUL_TOKENS", 16)
    for ids, nats in zip(documents, compute_nll(model, documents), strict=True):
        torch.testing.assert_close(nats.double(), cost_by_hand(inner, ids), atol=1e-4, rtol=1e-4)


def test_what_a_model_can_do_is_found_by_asking_it(opened):
    kinds = {kind: opened(kind)[1] for kind in ARCHITECTURES}
    changed = {kind for kind, model in kinds.items() if not model.is_head_last}
    assert changed == {"gemma2", "recurrent_gemma"}  # they cap what the head says
    whole = {kind for kind, model in kinds.items() if not model.carries_state}
    assert whole == {"mamba", "falcon_mamba", "jamba", "recurrent_gemma"}
    learned = {kind for kind, model in kinds.items() if model.max_context_length}
    assert learned == {"opt", "gpt_neo"}
    unnamed = {kind for kind, model in kinds.items() if model.context_length == 2048}
    assert unnamed == {"bloom", "mamba", "falcon_mamba"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_decoding_by_its_state_gives_the_logits_of_reading_it_whole(kind, opened, tokenizer):
    inner, model = opened(kind)
    ids = tokenizer("the cat sat on the mat and a dog").input_ids
    with torch.no_grad():
        whole = inner(torch.tensor([ids])).logits[0]
        decoder = Decoder(model)
        logits = [decoder.prefill([ids[:4]], 20)[0]]
        logits += [decoder.decode(torch.tensor([[token]]))[0, 0] for token in ids[4:]]
    torch.testing.assert_close(torch.stack(logits), whole[3:], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gpt_neox", "opt", "gemma2", "mamba", "rwkv", "jamba"])
def test_it_continues_as_its_own_generate_alone_and_side_by_side(kind, opened, tokenizer):
    inner, model = opened(kind)
    rows = [tokenizer(prompt).input_ids for prompt in ("the cat sat on", "a dog")]
    with torch.inference_mode():
        alone = [list(generate_tokens(Decoder(model), [ids], GREEDY, ())) for ids in rows]
        both = list(generate_tokens(Decoder(model), rows, GREEDY, ()))
    for place, (ids, steps) in enumerate(zip(rows, alone, strict=True)):
        inputs = torch.tensor([ids])
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        made = inner.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
        assert [token for (token,) in steps] == made[0, len(ids) :].tolist()
        assert [step[place] for step in both] == made[0, len(ids) :].tolist()


def test_beams_are_those_of_its_own_generate(opened, tokenizer):
    _, model = opened("qwen3")
    made = generate(model, tokenizer, "the cat", Sampling(num_beams=3, max_new_tokens=5))
    assert made.tokens <= 5


@pytest.mark.parametrize("kind", ["gpt_neox", "gemma2", "mamba", "mamba2", "jamba"])
def test_the_server_batches_it_and_scores_its_prompts(kind, opened, tokenizer, monkeypatch):
    """A prompt is read in chunks where its state allows it, and whole where not."""
    inner, model = opened(kind)
    monkeypatch.setattr(batching, "PREFILL_CHUNK", 4)
    rows = [tokenizer(text).input_ids for text in ("the cat sat on the mat", "a dog")]
    batch = ContinuousBatch(model, 2)
    slots = {batch.add(ids, 4): ids for ids in rows}
    seen = {slot: [] for slot in slots}
    with torch.inference_mode():
        for _ in range(12):
            ready, logits = batch.step([slot for slot in slots if len(seen[slot]) < 4])
            for slot, row in zip(ready, logits, strict=True):
                seen[slot].append(row.clone())
                batch.append(slot, int(row.argmax()))
        for slot, ids in slots.items():
            chosen = [int(row.argmax()) for row in seen[slot]]
            whole = inner(torch.tensor([[*ids, *chosen[:-1]]])).logits[0, len(ids) - 1 :]
            torch.testing.assert_close(torch.stack(seen[slot]), whole, atol=2e-4, rtol=1e-3)
        monkeypatch.setattr("rung.serve.logprobs.SCORING_CHUNK", 4)
        scored = [token.logprob for part in score_prompt(model, rows[0], 1) for token in part]
    torch.testing.assert_close(
        -torch.tensor(scored).double(), cost_by_hand(inner, rows[0]), atol=2e-4, rtol=1e-3
    )
