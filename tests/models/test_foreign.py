"""Causal language models of other architectures: tiny random ones, of folders that transformers
wrote. What they cost is held to transformers' own forward pass and to lm-evaluation-harness.
"""

import pytest
import torch

from rung.evaluation.documents import tokenize_documents
from rung.evaluation.likelihood import compute_nll
from rung.models.foreign import ForeignForCausalLM
from tests.conftest import SENTENCES
from tests.models.foreign import ARCHITECTURES, build

TEXTS = (
    "the cat sat on the mat",
    "a dog is not a cat,  and naïve",
    "an unheard-of log\n\n the dog",
)
LONG = " ".join(SENTENCES * 6)


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


def cost_by_hand(inner, ids):
    with torch.no_grad():
        logits = inner(torch.tensor([ids[:-1]])).logits[0].double()
    return -logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_costs_are_those_of_its_own_forward_pass(kind, opened, tokenizer):
    inner, model = opened(kind)
    documents = [document.ids for document in tokenize_documents(TEXTS, tokenizer)]
    for ids, nats in zip(documents, compute_nll(model, documents), strict=True):
        torch.testing.assert_close(nats.double(), cost_by_hand(inner, ids), atol=2e-5, rtol=1e-5)
