"""The trigram as a teacher, against the distributions of the n-gram model that it is made of."""

import numpy
import pytest
import torch
from torch.nn import functional as F

from rung.models.fused import linear_cross_entropy
from rung.models.ngram import teacher as teacher_module
from rung.models.ngram.teacher import TrigramTeacher


@pytest.fixture(params=["C", "torch"])
def side(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(teacher_module, "_compile", lambda: None)
    elif teacher_module._compile() is None:
        pytest.skip("there is no C compiler here")
    return request.param


def make_teacher(make_tiny, length=600):
    config = make_tiny("llama3").config
    draw = numpy.random.default_rng(0)
    tokens = draw.zipf(1.5, length) % (config.vocab_size - 1) + 1
    starts = numpy.arange(0, length, 100)
    tokens[starts] = config.bos_token_id
    return TrigramTeacher(config, tokens, starts), tokens


def blended_gradient(teacher, ids, targets, share):
    torch.manual_seed(0)
    size = len(teacher.bigram)
    hidden, head = torch.randn(ids.numel(), 8, requires_grad=True), torch.randn(size, 8)
    head.requires_grad_()

    def blend(gradient, rows):
        teacher.blend(gradient, ids, targets, share, rows)

    loss = linear_cross_entropy(hidden, head, targets, blend=blend)
    return hidden, head, loss


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_gradient_is_that_of_soft_targets(make_tiny, share, side):
    teacher, tokens = make_teacher(make_tiny)
    ids = torch.from_numpy(tokens[:120]).view(3, 40)
    targets = torch.from_numpy(tokens[1:121].copy())
    targets[[5, 77]] = -100
    hidden, head, loss = blended_gradient(teacher, ids, targets, share)
    counted = targets >= 0
    logits = (hidden @ head.T)[counted]
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets[counted]))
    taught = teacher.model(ids).logits.exp().flatten(0, 1)[counted]
    soft = share * taught + (1 - share) * F.one_hot(targets[counted], len(head))
    wanted = torch.autograd.grad(F.cross_entropy(logits, soft), (hidden, head))
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, head)), wanted)


def test_a_text_without_trigrams_teaches_its_bigrams(make_tiny, side):
    config = make_tiny("llama3").config
    tokens = numpy.array([config.bos_token_id, 5] * 4)
    teacher = TrigramTeacher(config, tokens, numpy.arange(0, 8, 2))
    ids, targets = torch.tensor([[5, 6]]), torch.tensor([6, 7])
    gradient = torch.zeros(2, config.vocab_size)
    teacher.blend(gradient, ids, targets, 1.0, slice(0, 2))
    taught = -gradient + F.one_hot(targets, config.vocab_size)
    torch.testing.assert_close(taught, teacher.model(ids).logits.exp()[0])
