"""The whole numbers of rungs that count are their probabilities, with and without a compiler."""

import math

import numpy
import pytest
import torch

from rung.models import exact_probabilities
from rung.models.exact_probabilities import exponentiate_base_10
from rung.models.ngram.model import NgramConfig, NgramForCausalLM
from rung.models.ngram.tables import NgramTable
from tests.conftest import SENTENCES
from tests.evaluation.conftest import count

MODELS = {
    "bigram": ("bigram", {}),
    "kneser-ney": ("ngram", {"order": 4}),
    "pruned": ("ngram", {"order": 4, "prune": [0, 1]}),
    "add-k": ("ngram", {"order": 3, "smoothing": "add-k", "k": 0.5}),
    "stupid back-off": ("ngram", {"order": 3, "smoothing": "stupid-backoff"}),
    "one order": ("ngram", {"order": 1}),
}


@pytest.mark.parametrize("compiled", [True, False], ids=["in C", "in numpy"])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_the_probabilities_of_the_forward_pass(name, compiled, tokenizer, monkeypatch):
    if not compiled:
        monkeypatch.setattr(exact_probabilities, "_compile", lambda: None)
    rung, settings = MODELS[name]
    model = count(rung, tokenizer, SENTENCES, **settings)
    exact = model.make_exact_probabilities()
    ids = tokenizer("the cat sat on a log, not").input_ids
    wanted = model(torch.tensor([ids])).logits[0].double().softmax(-1).numpy()
    size = exact.vocab_size
    slots, places = numpy.array([2]), numpy.arange(size + 2)[None]
    exact.reset(2)
    for place, token in enumerate(ids):
        exact.append(slots, numpy.array([token]))
        sums = exact.cumulate(slots, places)[0]
        assert sums[0] == 0 and sums[size] == sums[size + 1]
        numbers = numpy.diff(sums[: size + 1])
        assert numbers.min() >= 1
        assert numpy.allclose(numbers / sums[size], wanted[place], rtol=1e-5, atol=1e-9)


def make_table(tokens, parents, probability, backoff):
    return NgramTable(
        tokens=numpy.array(tokens, dtype=numpy.int32),
        parents=numpy.array(parents),
        log10_probability=numpy.array(probability, dtype=numpy.float32),
        log10_backoff=numpy.array(backoff, dtype=numpy.float32),
    )


def test_lower_n_grams_that_are_missing_are_backed_off():
    """As in models that another tool made: (1 2 3) and (1 2 3 4) are there, (2 3) is not."""
    tables = [
        make_table(range(5), [0] * 5, [-0.7, -0.6, -0.8, -0.65, -0.75], [0, -0.1, -0.2, 0.1, 0]),
        make_table([2], [1], [-0.2], [-0.3]),
        make_table([3], [0], [-0.1], [-0.4]),
        make_table([4], [0], [-0.15], [0]),
    ]
    model = NgramForCausalLM.from_tables(NgramConfig(vocab_size=5, order=4), tables)
    exact = model.make_exact_probabilities()
    exact.reset(0)
    slots, places = numpy.array([0]), numpy.arange(6)[None]
    for end, token in enumerate([1, 2, 3, 4], start=1):
        exact.append(slots, numpy.array([token]))
        numbers = numpy.diff(exact.cumulate(slots, places)[0])
        ids = torch.tensor([[1, 2, 3, 4][:end]])
        wanted = model(ids).logits[0, -1].double().softmax(0).numpy()
        assert numpy.allclose(numbers / numbers.sum(), wanted, rtol=1e-5)


def test_powers_of_10_are_exact_to_the_last_digits():
    values = numpy.array([0.0, -1.0, -0.30103, -7.25, -99.0, 0.7, -numpy.inf])
    found = exponentiate_base_10(values)
    assert found[0] == 1.0 and found[-1] == 0.0
    for value, power in zip(values[:-1], found[:-1], strict=True):
        assert math.isclose(power, 10.0**value, rel_tol=1e-13)
