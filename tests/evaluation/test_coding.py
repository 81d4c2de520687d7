"""Tokens are coded in the bits that their probabilities say, and decoded again."""

import random

import numpy
import pytest
import torch

pytest.importorskip("constriction")

from rung.errors import RunError
from rung.evaluation import quantized_probabilities
from rung.evaluation.coding import (
    CodedDocument,
    DocumentCoder,
    DocumentTokens,
    SymbolDecoder,
    SymbolEncoder,
    code_tokens,
)
from rung.evaluation.documents import NO_BOS
from rung.evaluation.quantized_probabilities import (
    MixedProbabilities,
    SteppedProbabilities,
    quantize,
)

EOS = 0


class Fixed:
    """A stepper whose logits are the same at every step."""

    def __init__(self, logits):
        self.logits, self.vocab_size = logits, len(logits)

    def reset(self, slot):
        pass

    def step(self, slots, tokens):
        return self.logits.expand(len(slots), -1), None


def fixed(size, seed=0):
    return Fixed(torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3)


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 300, 70_000])
def test_tokens_cost_what_their_probabilities_say(size):
    stepper = fixed(size)
    shares = stepper.logits.softmax(0).double()
    wanted = torch.multinomial(shares, 2_000, replacement=True).numpy()
    predictor, slots = SteppedProbabilities(stepper), numpy.arange(2_000)
    predictor.append(slots, slots)
    encoder = SymbolEncoder()
    code_tokens(predictor, slots, encoder, wanted)
    code = encoder.finish()
    assert (code_tokens(predictor, slots, SymbolDecoder(code), None) == wanted).all()
    bits = -shares[wanted].log2().sum().item()
    assert abs(8 * len(code) - bits) <= 0.001 * bits + 64


def test_a_token_without_a_chance_can_be_coded():
    predictor = SteppedProbabilities(Fixed(torch.tensor([0.0, -1e9, 0.0])))
    predictor.append(numpy.array([0]), numpy.array([0]))
    encoder = SymbolEncoder()
    code_tokens(predictor, numpy.array([0]), encoder, numpy.array([1]))
    decoder = SymbolDecoder(encoder.finish())
    assert code_tokens(predictor, numpy.array([0]), decoder, None).tolist() == [1]


def make_documents(count, pieces, bos=1, eos=EOS):
    dice = random.Random(count)
    return [
        CodedDocument(
            [bos, *(dice.randrange(2, 9) for _ in range(dice.randrange(1, 30)))]
            + ([] if eos is None else [eos]),
            [bytes(dice.randrange(256) for _ in range(dice.randrange(9))) for _ in range(pieces)],
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "bos, eos", [(1, EOS), (NO_BOS, EOS), (1, None), (NO_BOS, None), (EOS, EOS)]
)
@pytest.mark.parametrize("count, streams, pieces", [(0, 4, 0), (1, 1, 3), (20, 4, 0), (9, 64, 2)])
def test_documents_come_back_whatever_opens_and_ends_them(bos, eos, count, streams, pieces):
    documents = make_documents(count, pieces, bos, eos)

    def make_coder():
        return DocumentCoder(
            SteppedProbabilities(fixed(9)), DocumentTokens(bos, eos, unknown=3), streams
        )

    total = sum(len(document.ids) - 1 for document in documents)
    code = make_coder().encode(documents)
    assert make_coder().decode(code, count, total) == documents


def test_a_code_of_more_tokens_is_refused():
    documents = make_documents(3, 0)
    coder = DocumentCoder(SteppedProbabilities(fixed(9)), DocumentTokens(1, EOS, None), 2)
    with pytest.raises(RunError, match="beyond its end"):
        coder.decode(coder.encode(documents), 3, 4)


def test_a_mixture_adds_the_probabilities():
    parts = [SteppedProbabilities(fixed(9, seed)) for seed in (1, 2)]
    mixed, slots = MixedProbabilities(parts, [0.25, 0.75]), numpy.array([0])
    mixed.append(slots, slots)
    sums = mixed.cumulate(slots, numpy.arange(10)[None])[0]
    shares = [part.stepper.logits.softmax(0).double() for part in parts]
    wanted = (0.25 * shares[0] + 0.75 * shares[1]).numpy()
    assert numpy.allclose(numpy.diff(sums) / sums[-1], wanted, rtol=1e-6)


def test_probabilities_are_cut_to_whole_numbers():
    sums = quantize(torch.tensor([[0.5, 0.25, 0.25, 0.0]]))
    assert sums.tolist() == [[0, 2**49 + 1, 2**49 + 2**48 + 2, 2**50 + 3, 2**50 + 4]]


def test_without_a_compiler_the_whole_numbers_are_the_same(monkeypatch):
    logits = 9 * torch.randn(3, 77, generator=torch.Generator().manual_seed(1))
    sums = quantize(logits.softmax(dim=1))
    monkeypatch.setattr(quantized_probabilities, "_compile", lambda: None)
    assert (quantize(logits.softmax(dim=1)) == sums).all()
