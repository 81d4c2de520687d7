"""Distillation: learn from the distributions of an n-gram model, or from those of finished runs.

A run that reads a part of a text once can know the rest by its counts (Hinton et al. 2015, section
2, mix soft and hard targets in this way). The teacher counts blocks that training comes to last:
of text that it has counted it would know each token, and teach no more than the text does.
Finished runs teach their averaged probabilities, a share of the targets from the first step to the
last (Timiryasov & Tastet 2023, section 3, on small data).
"""

from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import numpy
import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rung.data.packing import BlockDataset, PackedTokens, TokenDataset
from rung.data.tokenizer import fingerprint_tokenizer
from rung.errors import RecipeError, RunError, did_you_mean
from rung.ladder import TRANSFORMER_RUNGS, is_counting
from rung.models import load
from rung.models.base import CausalModel
from rung.models.fused import BlendTargets, is_unmodified
from rung.models.ngram.teacher import MAX_VOCABULARY, TrigramTeacher
from rung.training.sampler import permute
from rung.training.settings import TrainSettings

NGRAM, NONE = "ngram", "none"
# Training reads this share of the blocks with a teacher that has counted the others.
READ_SHARE = 0.25
# The share of the targets that is that of runs (benchmarks/recipe/small_data.txt).
RUNS_SHARE = 0.5


class RunsTeacher:
    """Models, whose probabilities are averaged with equal weights."""

    def __init__(self, models: list[CausalModel]) -> None:
        """Ask `models`, which are on the device and in the mode in which they are to be asked."""
        self.models = models

    @torch.no_grad()
    def blend(
        self, gradient: Tensor, input_ids: Tensor, targets: Tensor, share: float, rows: slice
    ) -> None:
        """Turn the gradient for hard targets into that for targets which are by `share` ours.

        The arguments are those of `TrigramTeacher.blend`. Rows of `input_ids` are read that have a
        token in `rows`, so that no more probabilities stand in memory than the gradient has.
        """
        length = input_ids.shape[1]
        first, count = rows.start // length, len(gradient)
        ids = input_ids[first : -(-(rows.start + count) // length)]
        begin = rows.start - first * length
        taught = self._average(ids, gradient.dtype).flatten(0, 1)[begin : begin + count]
        targets = targets[rows]
        trained = (targets >= 0).float()[:, None] * share
        taught.mul_(-trained).scatter_add_(1, targets.clamp(min=0)[:, None], trained)
        gradient.add_(taught)

    def _average(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the mean probabilities (B, T, V) in float32, of products in `dtype`."""
        with torch.autocast(ids.device.type, dtype, enabled=dtype == torch.bfloat16):
            each = (model(input_ids=ids, use_cache=False).logits for model in self.models)
            total = reduce(Tensor.add_, (logits.float().softmax(-1) for logits in each))
        return total.div_(len(self.models))


class Distillation:
    """A teacher, and its share of the targets.

    One that has counted the blocks of an epoch's end fades until they are read.
    """

    def __init__(self, teacher: TrigramTeacher | RunsTeacher, last: int | None = None) -> None:
        """Fade until `last` rows are read; None for a teacher that does not fade."""
        self.teacher = teacher
        self.last = last

    def find_share(self, done: float, rows: int) -> float:
        """Return the teacher's share of the targets where a share of the run is done."""
        if self.last is None:
            return RUNS_SHARE
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


def list_runs(teacher: str | None) -> list[str]:
    """List the runs that a setting names as teachers; none where it is `ngram` or `none`."""
    return [] if teacher in (None, NONE, NGRAM) else str(teacher).split(",")


def check_teacher(rung: str, teacher: str | None) -> None:
    """Raise `RecipeError` for a teacher that there is not, or that the rung does not have."""
    if teacher in (None, NONE):
        return
    if not isinstance(teacher, str):
        raise RecipeError(f"teacher is {teacher!r}: write it as a text, as in runs/a,runs/b")
    for name in list_runs(teacher):
        if name in (NGRAM, NONE):
            raise RecipeError(f"teacher is {teacher!r}, but {name} stands alone: name only runs")
        if not name or not Path(name).is_dir():
            near = did_you_mean(name, [NGRAM, NONE])
            raise RecipeError(f"teacher is {teacher!r}: {name!r} is no folder of a run; {near}")
    if teacher == NGRAM and rung not in TRANSFORMER_RUNGS:
        raise RecipeError(f"teacher is {teacher!r}, which only {', '.join(TRANSFORMER_RUNGS)} have")
    if is_counting(rung):
        raise RecipeError(f"teacher is {teacher!r}, but {rung} counts: leave it out")


def load_teachers(
    names: list[str], tokenizer: PreTrainedTokenizerBase, vocab_size: int, length: int
) -> list[CausalModel]:
    """Load the runs that teach a model of so many tokens, trained on rows of `length`, on the CPU.

    Raises `RecipeError` for one with other tokens, a shorter window, or more weights than memory
    holds, and `RunError` for one that cannot be read.
    """
    models, wanted = [], fingerprint_tokenizer(tokenizer)
    for name in names:
        if (size := count_weight_bytes(name)) > (free := psutil.virtual_memory().available):
            sizes = f"{size / 1e9:.2f} GB of weights, and {free / 1e9:.2f} GB of memory are free"
            raise RecipeError(f"teacher {name} has {sizes}: name a smaller one, or fewer")
        model, own = load(name)
        if fingerprint_tokenizer(own) != wanted or model.config.vocab_size != vocab_size:
            raise RecipeError(
                f"teacher {name} has other tokens ({model.config.vocab_size:,}, not {vocab_size:,} "
                f"of the run's tokenizer): train with its own, --tokenizer {name}"
            )
        window = model.context_length
        if window is not None and window < length:
            raise RecipeError(
                f"teacher {name} reads {window:,} tokens at once, and rows have {length:,}: set "
                f"max_position_embeddings={window}"
            )
        models.append(model.float())
    return models


def count_weight_bytes(run: str) -> int:
    """Count the bytes of the weights in a run's folder."""
    return sum(file.stat().st_size for file in Path(run).glob("*.safetensors"))


def make_distillation(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TokenDataset,
    settings: TrainSettings,
) -> Distillation | None:
    """Load the runs that teach, or count the blocks that training comes to last.

    None without a teacher. Raises `RecipeError` where the model, its text or its device cannot have
    one, and as `load_teachers` does.
    """
    teacher = settings.teacher
    if teacher in (None, NONE):
        return None
    missing = _find_missing(model, dataset, settings)
    if not missing and teacher == NGRAM:
        missing = _find_missing_counts(model, dataset)
    if missing:
        raise RecipeError(f"teacher is {teacher!r}, which needs {missing}")
    assert isinstance(dataset, BlockDataset)
    if names := list_runs(teacher):
        models = load_teachers(names, tokenizer, model.config.vocab_size, dataset.length)
        return Distillation(RunsTeacher([_move(each, model.device) for each in models]))
    last = int(len(dataset) * READ_SHARE)
    counted = permute(numpy.arange(last, len(dataset)), len(dataset), (settings.seed, 0))
    taken = _take_blocks(dataset, counted)
    return Distillation(TrigramTeacher(model.config, taken.tokens, taken.starts), last)


def _move(model: CausalModel, device: torch.device) -> CausalModel:
    try:
        return cast(Any, model).to(device)
    except torch.OutOfMemoryError as error:
        message = f"a teacher does not fit on {device}: name a smaller one, or fewer"
        raise RunError(message) from error


def _find_missing(model: CausalModel, dataset: TokenDataset, settings: TrainSettings) -> str:
    """Say what a run would have to have for a teacher; empty where it has all."""
    if not isinstance(dataset, BlockDataset):
        return "a text cut into blocks, without carry_state"
    # Elsewhere the loss is made of logits, and its targets are not softened.
    for name in ("fp16", "fsdp"):
        if settings.arguments.get(name):
            return f"a run without train.{name}"
    return "" if is_unmodified(model.get_output_embeddings(), nn.Linear) else "a plain head"


def _find_missing_counts(model: CausalModel, dataset: TokenDataset) -> str:
    """Say what is missing for a teacher that counts."""
    if len(dataset) < 1 / READ_SHARE:
        return "a longer text, cut into blocks"
    if model.config.vocab_size > MAX_VOCABULARY:
        return f"a vocabulary of {MAX_VOCABULARY:,} tokens or less"
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
