"""Start a transformer with what it would learn first: how common tokens are, and how to copy.

Channels of the residual stream are set apart for it: one holds a constant, which the head reads as
how often each token comes; three groups hold the present token, the one before, and one that is
copied. A head of the first layer brings each token the one before it, a head of the second looks
for a token that came after one like the present, and the head of the model knows what it brings by
the token's embedding: the induction heads of induction.py, with room of their own. GPT-2 finds
the token before in a few channels of its positions, Llama in its rotation. All are weights like
others, which go on learning.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from jaxtyping import Int
from torch import Tensor, nn

from rung.models.induction import (
    FAST_FREQUENCY,
    HeadWeights,
    add_previous_token_head,
    list_head_weights,
)
from rung.models.llama3 import rotary_frequencies

EMBEDDING_STD = 0.3  # of the channels that hold the present token
# Energies beside that of a token, which is 1.
CONSTANT_ENERGY = {"gpt2": 0.5, "llama": 1.0}
POSITION_ENERGY = 1.0
# Of four sines and cosines, radians a token: few channels, for what tells positions apart is noise
# to all that does not ask for it.
POSITION_FREQUENCIES = (2.6, 1.393, 0.747, 0.4)
# Before the softmax: of the token before in GPT-2, and of one that came after a token like the
# present.
PREVIOUS_SCORE = 60.0
MATCH_SCORE = 15.0
COPY_LOGIT = 4.0  # of a copied token above the others
POSITION_CHANNELS = 2 * len(POSITION_FREQUENCIES)
LEAST_TOKEN_CHANNELS = 4
TRANSFORMER_TYPES = tuple(CONSTANT_ENERGY)  # `model_type` of a configuration


@dataclass(frozen=True)
class Channels:
    """The channels of the residual stream that are set apart; the first holds the constant."""

    positions: int  # channels after the first
    size: int  # of each group below

    @property
    def now(self) -> slice:
        """Those that hold the present token."""
        return self._group(0)

    @property
    def before(self) -> slice:
        """Those that hold the token before."""
        return self._group(1)

    @property
    def copied(self) -> slice:
        """Those that hold a token which is copied."""
        return self._group(2)

    def _group(self, number: int) -> slice:
        first = 1 + self.positions + number * self.size
        return slice(first, first + self.size)


def find_missing(model: Any) -> str:
    """Say what the model would have to have for this start; empty where it has all."""
    if model.config.tie_word_embeddings:
        return "a head of its own: set tie_word_embeddings=false"
    if model.config.num_hidden_layers < 2:
        return "two layers or more"
    if _divide_channels(model).size < LEAST_TOKEN_CHANNELS:
        return "more channels: set a larger hidden_size"
    return ""


@torch.no_grad()
def start_transformer(model: Any, tokens: numpy.ndarray) -> None:
    """Give a new `gpt2` or `llama3` its start, from the tokens (N,) that it is to be trained on.

    The model must have what `find_missing` asks for.
    """
    kind, channels = model.config.model_type, _divide_channels(model)
    table, head = (
        part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    token = channels.size * EMBEDDING_STD**2  # the energy of a token
    constant = math.sqrt(CONSTANT_ENERGY[kind] * token)
    table.zero_()
    nn.init.normal_(table[:, channels.now], std=EMBEDDING_STD)
    energy = token * (1 + CONSTANT_ENERGY[kind] + POSITION_ENERGY * (channels.positions > 0))
    # The size of a channel before each layer and before the head: either layer adds a token.
    sizes = [math.sqrt((energy + added * token) / table.shape[1]) for added in range(3)]
    start_layers = _start_gpt2 if kind == "gpt2" else _start_llama
    circuits = start_layers(model, constant, token, sizes[0])
    room = len(circuits[0].channels)
    if room:  # a long context leaves Llama no channels that hardly turn
        heads = min(len(circuits), math.ceil(channels.size / room))
        share = min(room, math.ceil(channels.size / heads))
        for number, circuit in enumerate(circuits[:heads]):
            part = torch.arange(channels.size)[number * share :][:share]
            _add_copying(circuit, part, channels, sizes)
        copied = min(channels.size, heads * share) * EMBEDDING_STD**2
        head[:, channels.copied] += table[:, channels.now] * (COPY_LOGIT * sizes[2] / copied)
    counts = torch.from_numpy(numpy.bincount(tokens, minlength=len(head))) + 0.5
    head[:, 0] += (counts / counts.sum()).log().to(head) * (sizes[2] / constant)


@dataclass(frozen=True)
class _Circuit:
    """Two heads that copy together, and the channels in which they compare tokens."""

    first: HeadWeights
    second: HeadWeights
    channels: Int[Tensor, " room"]


def _divide_channels(model: Any) -> Channels:
    positions = POSITION_CHANNELS if model.config.model_type == "gpt2" else 0
    return Channels(positions, (model.config.hidden_size - 1 - positions) // 3)


def _add_copying(
    circuit: _Circuit, part: Int[Tensor, " N"], channels: Channels, sizes: list[float]
) -> None:
    """Bring each token the one before, compare these `part`s of tokens, and copy what matches."""
    first, second, ours = circuit.first, circuit.second, circuit.channels[: len(part)]
    now, before, copied = (
        group.start + part for group in (channels.now, channels.before, channels.copied)
    )
    head_size = len(first.query)
    first.value[ours, now] += 1.0
    first.output[before, ours] += sizes[0]
    gain = math.sqrt(MATCH_SCORE * math.sqrt(head_size) / len(part)) * sizes[1] / EMBEDDING_STD
    second.query[ours, now] += gain
    second.key[ours, before] += gain
    second.value[ours, now] += 1.0
    second.output[copied, ours] += sizes[1]


def _start_llama(model: Any, constant: float, token: float, size: float) -> list[_Circuit]:
    """Let all tokens share the constant, which rotation turns; return the heads that copy.

    Tokens are compared in the channels that hardly turn over a context.
    """
    del token
    table = model.get_input_embeddings().weight
    table[:, 0] = constant
    frequencies = rotary_frequencies(model.config, table.device)
    fast = (frequencies > FAST_FREQUENCY).nonzero().flatten()
    length = model.config.max_position_embeddings
    slow = (frequencies.repeat(2) * length < 1).nonzero().flatten()
    common = torch.zeros(table.shape[1])
    common[0] = math.sqrt(table.shape[1]) * size / constant
    pairs = zip(*map(list_head_weights, list(model.model.layers)[:2]), strict=True)
    circuits = [_Circuit(first, second, slow) for first, second in pairs]
    for layer in list(model.model.layers)[:2]:  # instead of the circuit that they began with
        for name in "qkvo":
            weight = getattr(layer.self_attn, f"{name}_proj").weight
            nn.init.normal_(weight, std=model.config.initializer_range)
    for circuit in circuits:
        add_previous_token_head(circuit.first, common.to(table), frequencies, fast)
    return circuits


def _start_gpt2(model: Any, constant: float, token: float, size: float) -> list[_Circuit]:
    """Write the constant and a few sines and cosines into the positions; return the heads.

    A query turned back by one token matches the key of the token before.
    """
    table = model.transformer.wpe.weight
    frequencies = torch.tensor(POSITION_FREQUENCIES)
    amplitude = math.sqrt(POSITION_ENERGY * token / len(frequencies))
    angles = torch.arange(len(table))[:, None] * frequencies
    table.zero_()
    table[:, 0] = constant
    table[:, 1 : 1 + POSITION_CHANNELS] = amplitude * torch.cat([angles.sin(), angles.cos()], dim=1)
    pairs = zip(*map(_list_gpt2_heads, list(model.transformer.h)[:2]), strict=True)
    circuits = [_Circuit(first, second, torch.arange(len(first.query))) for first, second in pairs]
    room = min(len(circuits[0].channels) // 2, len(frequencies))
    sin = torch.arange(room)
    cos = sin + room
    x, y = 1 + sin, 1 + len(frequencies) + sin
    back_cos, back_sin = frequencies[:room].cos(), frequencies[:room].sin()
    for head in (circuit.first for circuit in circuits):
        score = PREVIOUS_SCORE * math.sqrt(len(head.query)) / room
        gain = math.sqrt(score) * size / amplitude
        head.query[sin, x] += gain * back_cos
        head.query[sin, y] -= gain * back_sin
        head.query[cos, x] += gain * back_sin
        head.query[cos, y] += gain * back_cos
        head.key[sin, x] += gain
        head.key[cos, y] += gain
    return circuits


def _list_gpt2_heads(layer: nn.Module) -> Iterator[HeadWeights]:
    """List the heads of a GPT-2 layer, whose matrices are transposed and in one."""
    attention: Any = layer.attn
    q, k, v = attention.c_attn.weight.T.chunk(3)
    output = attention.c_proj.weight.T
    for rows in torch.arange(len(q)).chunk(attention.heads):
        head = slice(int(rows[0]), int(rows[-1]) + 1)
        yield HeadWeights(q[head], k[head], v[head], output[:, head])
