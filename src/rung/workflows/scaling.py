"""Scaling laws: what a rung of so many weights learns from so many tokens, fitted on small runs.

Each trained rung has laws of its own, fitted on tokens and not on seconds, so they hold on every
machine. benchmarks/recipe/scaling.py made the runs and fits the laws, and scaling.txt beside it
shows each run next to what its law expects.
"""

import math
from dataclasses import dataclass, replace

from rung.workflows.difficulty import Difficulty

# A text that is read again and again is learnt by heart. Each reading adds so much weight decay, up
# to the most (Kim et al. 2025, arXiv 2509.14786; benchmarks/recipe/readings.txt).
DECAY_OF_A_READING, MOST_DECAY = 0.1, 1.0
# The laws were fitted on texts of 0.9 million tokens and more. Of a text of 20,000 they expect a
# third too much bits per byte: n-grams have learned little of it, too.
SMALLEST_TEXT = 300_000


@dataclass(frozen=True)
class Shape:
    """A width that a model may have, and the weights that come of it.

    `hidden_parameters` are those outside the token embeddings and the head.
    """

    width: int
    parameters: int
    hidden_parameters: int


@dataclass(frozen=True)
class ScalingLaw:
    """Bits per byte as a multiple of what counting finds.

    The multiple is floor + size / (N / 1e6)^size_power + data / (D / 1e6)^data_power for N weights
    and D tokens (Hoffmann et al. 2022, section 3.3). Tokens read again count for less and less:
    `patience` epochs of them are worth as many new ones, however many follow (Muennighoff et al.
    2023, section 5). `copying` is the share that counts of what copying gains over an n-gram model.
    N is all weights, or with `counts_tables` false those outside embeddings and head (Kaplan et al.
    2020, section 2.1).
    """

    floor: float
    size: float
    size_power: float
    data: float
    data_power: float
    patience: float
    copying: float
    counts_tables: bool = True

    def reference(self, difficulty: Difficulty) -> float:
        """Return the bits per byte that the law gives multiples of."""
        return difficulty.ngram ** (1 - self.copying) * difficulty.copying**self.copying

    def count(self, shape: Shape) -> int:
        """Count the weights of a shape as the law does."""
        return shape.parameters if self.counts_tables else shape.hidden_parameters

    def __call__(self, parameters: float, tokens: float, text: float) -> float:
        """Return the multiple for `tokens` read of a text of `text` tokens."""
        again = max(0.0, tokens / text - 1)
        worth = min(tokens, text) + text * self.patience * (1 - math.e ** (-again / self.patience))
        return (
            self.floor
            + self.size * (parameters / 1e6) ** -self.size_power
            + self.data * (worth / 1e6) ** -self.data_power
        )


@dataclass(frozen=True)
class RungLaws:
    """The law of one rung, the widths to choose among, and what a text of some size can feed.

    The law knows no harm of too many weights or readings. A model learns a text by heart that has
    more than `most_weights` for each of its tokens, or reads it more than `most_epochs` times.
    `dropouts` are the readings from which on there is so much dropout; `decays` says whether more
    weight decay helps. benchmarks/recipe/readings.txt has what each is worth.
    """

    law: ScalingLaw
    most_weights: float = 8.5
    most_epochs: float = 16.0
    dropouts: tuple[tuple[float, float], ...] = ((8.0, 0.1),)
    decays: bool = True
    widths: range = range(32, 2049, 32)

    def count_most_parameters(self, tokens: int) -> int:
        """Count the weights that a text of so many tokens can feed."""
        return round(self.most_weights * tokens)

    def find_dropout(self, epochs: float) -> float:
        """Return the dropout for a text that is read so often."""
        return max((dropout for begin, dropout in self.dropouts if epochs > begin), default=0.0)

    def find_weight_decay(self, epochs: float) -> float | None:
        """Return the weight decay for a text that is read so often; None is the default."""
        if not self.decays or epochs <= 1:
            return None
        return round(min(MOST_DECAY, DECAY_OF_A_READING * epochs), 2)


# A few minutes of two cores: at a hundred times that these expect too much.
_LLAMA3 = ScalingLaw(
    floor=0.4668,
    size=0.1828,
    size_power=0.34,
    data=0.3268,
    data_power=0.28,
    patience=1.9372,
    copying=1.0114,
)
_GPT2 = replace(_LLAMA3, floor=0.5267, size=0.1633, data=0.311, patience=4.8173, copying=0.5857)
# The recurrent rungs' tables outweigh their layers.
_RNN = ScalingLaw(
    floor=0.7179,
    size=0.0377,
    size_power=0.34,
    data=0.186,
    data_power=0.28,
    patience=3.6772,
    copying=0.0074,
    counts_tables=False,
)
_RNN_ATTENTION = replace(
    _RNN, floor=0.506, size=0.0888, data=0.3334, patience=1.8119, copying=0.7137
)
_RECURRENT = RungLaws(
    _RNN,
    most_weights=3.5,
    most_epochs=32.0,
    dropouts=((6.0, 0.2), (15.0, 0.3)),
    decays=False,
    widths=range(32, 2049, 16),
)
SCALING_LAWS: dict[str, RungLaws] = {
    "rnn": _RECURRENT,
    "rnn-attention": replace(_RECURRENT, law=_RNN_ATTENTION),
    "gpt2": RungLaws(_GPT2, most_epochs=32.0),
    "llama3": RungLaws(_LLAMA3),
}
