"""Distillation: learn from an n-gram model's distributions first, and from the text alone at last.

A run that reads a part of a text once can know the rest by its counts (Hinton et al. 2015, section
2, mix soft and hard targets in this way). The teacher counts blocks that training comes to last:
of text that it has counted it would know each token, and teach no more than the text does.
"""

from functools import partial
from typing import Any

import numpy
from torch import Tensor, nn

from rung.data.packing import BlockDataset, PackedTokens, TokenDataset
from rung.errors import RecipeError, did_you_mean
from rung.ladder import TRANSFORMER_RUNGS
from rung.models.base import CausalModel
from rung.models.fused import BlendTargets, is_unmodified
from rung.models.ngram.teacher import MAX_VOCABULARY, TrigramTeacher
from rung.training.sampler import permute

NGRAM, NONE = "ngram", "none"
# Training reads this share of the blocks with a teacher that has counted the others.
READ_SHARE = 0.25


class Distillation:
    """A teacher that has counted the blocks of an epoch's end, and fades until they are read."""

    def __init__(self, teacher: TrigramTeacher, last: int) -> None:
        """Fade until `last` rows are read."""
        self.teacher = teacher
        self.last = last

    def find_share(self, done: float, rows: int) -> float:
        """Return the teacher's share of the targets where a share of the run is done."""
        return max(0.0, 1.0 - max(done, rows / self.last))

    def soften(self, inputs: dict[str, Any], done: float, rows: int) -> dict[str, BlendTargets]:
        """Return the option by which a batch's gradient becomes that of softened targets."""
        share = self.find_share(done, rows)
        ids, targets = inputs["input_ids"], inputs["shift_labels"].flatten()
        return {"blend_targets": partial(self._blend, ids, targets, share)} if share else {}

    def _blend(
        self, ids: Tensor, targets: Tensor, share: float, gradient: Tensor, rows: slice
    ) -> None:
        self.teacher.blend(gradient, ids, targets, share, rows)


def check_teacher(rung: str, teacher: str | None) -> None:
    """Raise `RecipeError` for a teacher that the rung does not have."""
    if teacher in (None, NONE):
        return
    if teacher != NGRAM:
        raise RecipeError(f"teacher is {teacher!r}: {did_you_mean(str(teacher), [NGRAM, NONE])}")
    if rung not in TRANSFORMER_RUNGS:
        raise RecipeError(f"teacher is {teacher!r}, which only {', '.join(TRANSFORMER_RUNGS)} have")


def make_distillation(
    model: CausalModel, dataset: TokenDataset, seed: int, teacher: str | None
) -> Distillation | None:
    """Count the blocks that training comes to last; None without a teacher.

    Raises `RecipeError` where the model, its text or its device cannot have one.
    """
    if teacher in (None, NONE):
        return None
    if missing := _find_missing(model, dataset):
        raise RecipeError(f"teacher is {teacher!r}, which needs {missing}")
    assert isinstance(dataset, BlockDataset)
    last = int(len(dataset) * READ_SHARE)
    counted = permute(numpy.arange(last, len(dataset)), len(dataset), (seed, 0))
    taken = _take_blocks(dataset, counted)
    return Distillation(TrigramTeacher(model.config, taken.tokens, taken.starts), last)


def _find_missing(model: CausalModel, dataset: TokenDataset) -> str:
    """Say what a run would have to have for a teacher; empty where it has all."""
    if not isinstance(dataset, BlockDataset) or len(dataset) < 1 / READ_SHARE:
        return "a longer text, cut into blocks"
    if model.config.vocab_size > MAX_VOCABULARY:
        return f"a vocabulary of {MAX_VOCABULARY:,} tokens or less"
    if not is_unmodified(model.get_output_embeddings(), nn.Linear):
        return "a plain head"
    return "" if model.device.type == "cpu" else "a CPU: a GPU reads the whole text soon"


def _take_blocks(dataset: BlockDataset, blocks: numpy.ndarray) -> PackedTokens:
    """Put blocks together, in their order, and drop what comes before their first document."""
    tokens = numpy.asarray(dataset.tokens)
    is_taken = numpy.zeros(len(dataset), dtype=bool)
    is_taken[blocks] = True
    is_taken = numpy.repeat(is_taken, dataset.length)[: len(tokens)]
    # The last token is only a target.
    tokens, opens = tokens[: len(is_taken)], numpy.zeros(len(tokens), dtype=bool)
    opens[dataset.starts] = True
    starts = numpy.flatnonzero(opens[: len(is_taken)][is_taken])
    if not len(starts):  # one document
        return PackedTokens(tokens=tokens[is_taken], starts=numpy.zeros(1, dtype=numpy.int64))
    return PackedTokens(tokens=tokens[is_taken][starts[0] :], starts=starts - starts[0])
