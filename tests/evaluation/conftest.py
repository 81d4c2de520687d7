"""Texts, models and helpers that the tests of the ruler share."""

import numpy
import torch
from transformers import PreTrainedTokenizerFast

from rung.evaluation.documents import tokenize_documents
from rung.progress import ProgressMeter
from tests.conftest import SENTENCES

LONG = " ".join(SENTENCES * 8)


def cost_by_hand(model, tokenizer, text):
    """Nats of a document, one prediction at a time, from all that came before it."""
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return -sum(logits[i].log_softmax(-1)[ids[i + 1]].item() for i in range(len(ids) - 1))


def count(rung, tokenizer, texts, **settings):
    """A counting rung of these texts."""
    from rung.data.tokenizer import encode_documents
    from rung.models import RUNGS, make_config

    documents = list(encode_documents(texts, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    return RUNGS[rung].model_class.fit(
        make_config(rung, tokenizer, settings), numpy.concatenate(documents), starts
    )


def wrap(backend):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def quiet(*_):
    """Tell nobody how far it is."""


def meter():
    return ProgressMeter(quiet, "")


def documents_of(tokenizer, *texts):
    return list(tokenize_documents(texts, tokenizer))
