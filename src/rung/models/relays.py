"""Relays: start an LSTM with units that pass tokens on, and build on them what is learned first.

A relay's gates are open to the input and closed to its memory, so it holds the present token. A
second one that reads the first holds the token before. On the first stands a bigram: embeddings
and a head that factorise log P(b | a) / P(b) (Levy & Goldberg 2014 found word vectors to do so). On
both stands attention that copies, as a transformer's induction heads do (induction.py): the
recurrence takes the place of the first layer. All are weights like others, which go on learning.
"""

import math
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rung.models.bigram import count_pairs
from rung.models.initialization import init_head_bias

OPEN, CLOSED = 3.0, -5.0  # biases of gates, before the sigmoid
RELAY_RANGE = 0.3  # root mean square of what a relay holds: there tanh is nearly straight
RELAY_MAX = 0.6  # of what a relay holds
# What a pair that was never seen weighs, in pairs: P(b | a) = (C(ab) + w P(b)) / (C(a) + w).
PRIOR_PAIRS = 32.0
OVERSAMPLED = 16  # more singular values than are kept are looked for
COPY_RELAY_BIAS = 2.0  # of gates of relays that attention copies from
MATCH_SCORE = 20.0  # of a token that follows one like the present, before the softmax
COPY_LOGIT = 4.3  # of a copied token, at any width


def add_unigram(model: Any, tokens: numpy.ndarray) -> None:
    """Start the head's bias from how often each of `tokens` (N,) comes."""
    counts = numpy.bincount(tokens, minlength=model.config.vocab_size)
    init_head_bias(model.head, torch.from_numpy(counts))


@torch.no_grad()
def add_bigram(model: Any, tokens: numpy.ndarray, starts: numpy.ndarray) -> None:
    """Make an LSTM of one layer with a head of its own score like the bigram of `tokens`.

    Half of the units are relays. The bigram's log-ratios are cut to so many singular values, so
    with as many relays as tokens the two agree, and with fewer nearly.
    """
    width = model.config.hidden_size
    relays = width // 2
    left, right = factorise_bigram(tokens, starts, model.config.vocab_size, relays)
    scale = min(RELAY_RANGE / left.square().mean().sqrt(), RELAY_MAX / left.abs().max())
    embedding, head = model.embedding.weight, model.head.weight
    # The gates let `opened` through, and tanh bends it twice: the embedding makes up for both.
    opened = torch.tensor(OPEN).sigmoid()
    embedding[:, :relays] = ((left * scale / opened).atanh() / opened).atanh()
    head.zero_()
    head[:, :relays] = right / scale
    gates = _list_gates(model.recurrence.cell)
    _open(gates, slice(0, relays), OPEN, CLOSED)
    gates["candidate"][0][:relays, :relays] = torch.eye(relays)
    add_unigram(model, tokens)


@torch.no_grad()
def add_induction(model: Any) -> None:
    """Give the attention over an LSTM's states a head that continues repetitions.

    A quarter of the units hold the present token, a quarter the one before. Queries compare the
    present token with the token before each earlier one; what is found is written into a
    third quarter, where the head knows each token by its embedding.
    """
    size = model.config.hidden_size // 4
    now, before, copied = (slice(part * size, (part + 1) * size) for part in range(3))
    embedding, head = model.embedding.weight, model.head.weight
    nn.init.normal_(embedding[:, now], std=RELAY_RANGE)
    gates = _list_gates(model.recurrence.cell)
    for units in (now, before):
        _open(gates, units, COPY_RELAY_BIAS, -COPY_RELAY_BIAS)
    identity = torch.eye(size)
    gates["candidate"][0][now, now] = identity
    gates["candidate"][1][before, now] = 1.2 * identity  # what the gates took from the first
    held = size * RELAY_RANGE**2 / 2  # the square of what a relay holds, about
    width = model.config.hidden_size // model.config.num_attention_heads
    gain = math.sqrt(MATCH_SCORE * math.sqrt(width) / held)
    query, key, value = model.query_key_value.weight.chunk(3)
    query[:size, now] += gain * identity
    key[:size, before] += gain * identity
    value[:size, now] += identity
    model.mix.weight[copied, :size] += COPY_LOGIT / held * identity
    head[:, copied] += embedding[:, now]


def factorise_bigram(
    tokens: numpy.ndarray, starts: numpy.ndarray, vocabulary: int, rank: int
) -> tuple[Float[Tensor, "V rank"], Float[Tensor, "V rank"]]:
    """Factorise log P(b | a) / P(b) into two matrices, by the largest singular values.

    Up to a number for each a, which no softmax sees, the log-ratio is log(1 + C(ab) / (w P(b))),
    and zero for pairs that were never seen: a sparse matrix. Common tokens weigh most.
    """
    pairs, counts = count_pairs(tokens, starts, vocabulary)
    first, second = pairs // vocabulary, pairs % vocabulary
    shares = torch.from_numpy(numpy.bincount(tokens, minlength=vocabulary)).float() + 0.5
    shares /= shares.sum()
    ratios = torch.log1p(counts / (PRIOR_PAIRS * shares[second]))
    weights = shares.sqrt()
    matrix = torch.sparse_coo_tensor(
        torch.stack([first, second]),
        ratios * weights[first] * weights[second],
        (vocabulary, vocabulary),
        check_invariants=False,
    )
    found = min(rank + OVERSAMPLED, vocabulary)
    left, sizes, right = (part[..., :rank] for part in torch.svd_lowrank(matrix, found, niter=3))
    missing = rank - len(sizes)  # where there are fewer tokens than units
    left, right = (
        nn.functional.pad(part * sizes.sqrt() / weights[:, None], (0, max(0, missing)))
        for part in (left, right)
    )
    return left, right


def _list_gates(cell: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """List the first layer's gates: each one's input weights, recurrent weights and bias."""
    parts = (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0)
    names = ("input", "forget", "candidate", "output")  # in torch's order
    return dict(zip(names, zip(*(part.chunk(4) for part in parts), strict=True), strict=True))


def _open(
    gates: dict[str, tuple[Tensor, Tensor, Tensor]], units: slice, opened: float, closed: float
) -> None:
    """Open the units' gates to the input, close them to the memory, and cut all other ties."""
    for name, (inputs, recurrent, bias) in gates.items():
        inputs[units] = 0.0
        recurrent[units] = 0.0
        bias[units] = {"candidate": 0.0, "forget": closed}.get(name, opened)
