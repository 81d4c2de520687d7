"""Estimate the memory, disk and time of a run before anything of it is written."""

import timeit
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from rung import distributed
from rung.data.tokenizer import encode_documents
from rung.device import choose_device, has_fast_bfloat16
from rung.evaluation import documents, likelihood
from rung.evaluation.documents import take_texts
from rung.models import build_model, count_parameters, fused, make_config
from rung.models.base import CausalModel
from rung.models.bigram import PAIRS_AT_ONCE
from rung.models.ngram.counting_settings import (
    DEFAULT_MEMORY,
    MAPPED_BYTES_PER_NGRAM,
    NGRAMS_PER_SECOND,
    CountingSettings,
    process_memory,
)
from rung.progress import OnProgress, Progress, ignore_progress
from rung.recipe import Recipe
from rung.training.arguments import make_training_arguments
from rung.training.dataset import find_block_length
from rung.training.distillation import count_weight_bytes, list_runs
from rung.training.lora import LoraAdapter
from rung.training.optimizer import group_parameters, split_matrix
from rung.training.settings import MUON, TrainSettings
from rung.workflows.base import describe_teachers, read_base_config
from rung.workflows.budget import choose_width
from rung.workflows.prepare import (
    VALIDATION_BYTES,
    check_recipe,
    fill_batch,
    fill_recipe,
    prepare_tokenizer,
    read_corpus,
)

SAMPLED = 2**20  # characters that are tokenized to estimate the tokens of the whole text
# Bytes of an n-gram in the model, in an engine's files while it counts, and in kept orders.
MODEL, SCRATCH, ORDERS = 17, 60, 21
# Bytes of memory for a pair while pairs are counted, and for a suffix while suffixes are sorted.
PAIR, SUFFIX = 48, 24
UTILIZATION = 0.3  # the share of the measured speed of matrix products that training reaches
KEPT = 4  # checkpoints on disk at a time: the last two, the best, and the one being written
MATRIX = 512  # rows and columns of the matrices that are multiplied to measure the speed
# Products in 16 bits reduce the bytes that autograd keeps to this share. Sums stay in float32.
HALF = 0.6


def estimate_costs(
    recipe: Recipe, folder: Path, on_progress: OnProgress = ignore_progress
) -> dict[str, str]:
    """Estimate the costs of the run in `folder`, and return each figure as text by its name.

    The corpus is read, and stays in the cache for the run. Raises the errors with which the run
    itself would be refused.
    """
    check_recipe(recipe, folder)
    base = read_base_config(recipe) if recipe.base else None
    on_progress(Progress(stage="reading"))
    corpus = read_corpus(asdict(recipe))
    on_progress(Progress(stage="read", note=corpus.describe()))
    recipe = fill_recipe(fill_batch(recipe), corpus)
    tokenizer = prepare_tokenizer(recipe, corpus)
    texts = take_texts(corpus.train["text"], SAMPLED)
    sizes = (
        sum(len(text.encode()) for text in texts),
        sum(len(ids) for ids in encode_documents(texts, tokenizer)),
    )
    tokens = round(corpus.bytes["train"] * sizes[1] / sizes[0])
    found = {"training text": f"{corpus.bytes['train']:,} bytes, about {tokens:,} tokens"}
    if recipe.entry.counts:
        return found | _estimate_counting(recipe, tokenizer, tokens)
    scored = round(
        max(corpus.bytes["test"], min(corpus.bytes["validation"], VALIDATION_BYTES))
        * sizes[1]
        / sizes[0]
    )
    config = base or make_config(recipe.rung, tokenizer, recipe.model)
    found |= _estimate_training(recipe, tokenizer, base, tokens, scored)
    if describe_teachers(recipe, config, tokenizer):
        size = sum(map(count_weight_bytes, list_runs(recipe.teacher)))
        found["teachers"] = f"{_gigabytes(size)} of weights, in memory beside all that"
    return found


def _estimate_counting(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, tokens: int
) -> dict[str, str]:
    config, here = make_config(recipe.rung, tokenizer, recipe.model), process_memory()
    if recipe.rung != "ngram":
        if recipe.rung != "bigram":
            return {
                "memory": _gigabytes(here + SUFFIX * tokens),
                "disk": _gigabytes(SUFFIX / 2 * tokens),
            }
        most = min(tokens, config.vocab_size**2)  # different pairs
        counted = min(tokens, most + PAIRS_AT_ONCE)  # pairs in memory at a time
        return {"memory": _gigabytes(here + PAIR * counted), "disk": _gigabytes(PAIR / 6 * most)}
    counting, most = CountingSettings(**recipe.counting), tokens * (config.order - 1)
    found = {
        "n-grams": f"{most:,} at the most, of order 2 to {config.order}",
        "memory": f"{_gigabytes(counting.estimate_peak_bytes(most))} at the most",
        "smallest memory": _megabytes(CountingSettings(engine="numpy").min_memory_bytes("duckdb"))
        + " while counting, with --set counting.memory",
        "disk": _gigabytes(MODEL * most),
        "time": _time(most / NGRAMS_PER_SECOND[counting.engine]),
    }
    if counting.engine != "numpy":
        found["memory"] += (
            f", {counting.memory or DEFAULT_MEMORY} of it until the model is built; and up to "
            f"{_gigabytes(MAPPED_BYTES_PER_NGRAM * most)} of files mapped into memory"
        )
        found["disk"] += (
            f", and {_gigabytes(SCRATCH * most)} below {counting.scratch_folder(Path()).parent} "
            f"meanwhile"
        )
    if counting.keeps_checkpoints(tokens):
        found["disk"] += (
            f", and {_gigabytes(ORDERS * most)} for counts to go on from, until the run is complete"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """The bytes of a process that trains, by their use."""

    weights: float
    moments: float  # of the optimizer
    gradients: float
    kept: float  # by autograd for the backward pass, with the logits
    stepping: float  # for a step of the optimizer, besides its moments
    scoring: float  # while text is scored, when there are no gradients

    @property
    def most(self) -> float:
        """Return the peak: the most bytes that are held at one time."""
        at_a_time = (self.gradients + self.kept, self.gradients + self.stepping, self.scoring)
        return self.weights + self.moments + max(at_a_time)


def _estimate_training(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    base: PreTrainedConfig | None,
    tokens: int,
    scored: int,
) -> dict[str, str]:
    """Estimate a run that trains `base`, or random weights, on `tokens` and scores `scored`."""
    chosen = choose_width(recipe, tokenizer, tokens)
    with torch.device("meta"):  # tensors have shapes, but no memory
        model = build_model(chosen.rung, base or make_config(chosen.rung, tokenizer, chosen.model))
        learner = LoraAdapter(model, recipe.lora).peft_model if recipe.lora else model
    settings = TrainSettings(
        arguments=recipe.train, global_batch_size=recipe.global_batch_size, lora=recipe.lora
    )
    arguments = make_training_arguments(settings, Path(), 1)
    arguments.bf16 = not arguments.fp16 and recipe.train.get(
        "bf16", has_fast_bfloat16(choose_device())
    )
    memory = _count_memory(model, learner, arguments, scored)
    size, trained = (
        count_parameters(model),
        sum(p.numel() for p in learner.parameters() if p.requires_grad),
    )
    width = (
        ", or what measuring finds best" if recipe.minutes and chosen.model != recipe.model else ""
    )
    checkpoint = 4 * trained + memory.moments * _count_parts(arguments)
    found = {
        "parameters": f"{trained:,} trained beside {size:,}" if recipe.lora else f"{size:,}{width}",
        "memory a process": f"about {_gigabytes(process_memory() + memory.most)}, an estimate: "
        f"weights and optimizer "
        f"{_gigabytes(memory.weights + memory.moments)}, gradients {_gigabytes(memory.gradients)}, "
        f"activations "
        f"{_gigabytes(memory.kept)}, or while it is scored {_gigabytes(memory.scoring)}",
        "disk": f"{_gigabytes(4 * size + KEPT * checkpoint)} with {KEPT} checkpoints",
    }
    if recipe.minutes:
        return found | {"time": f"{recipe.minutes:g} minutes, as asked"}
    if not recipe.steps:
        return found
    rows = recipe.global_batch_size or arguments.train_batch_size * distributed.world_size()
    work = recipe.steps * rows * find_block_length(model) * (4 * size + 2 * trained)
    speed = UTILIZATION * _measure_products() * distributed.world_size()
    return found | {"time": _time(work / speed)}


def _count_memory(
    model: CausalModel, learner: Any, arguments: TrainingArguments, scored: int
) -> _Memory:
    """Count the memory of training a model that stands on the meta device.

    `learner` is what is trained: the model, or the model with adapters.
    """
    parts, is_muon = _count_parts(arguments), arguments.optim == MUON
    is_half = arguments.bf16 or arguments.fp16
    groups = group_parameters(learner, weight_decay=0.0)
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    trained, matrices = sum(sizes), group_parameters(model, weight_decay=0.0)[0]["params"]
    # With LoRA, the matrices are held once more, with the change added to them.
    copied = sum(4 * p.numel() for p in matrices) if learner is not model else 0
    weights = sum(p.numel() for p in learner.parameters())
    # DDP exchanges gradients through buckets, which hold them once more.
    buckets = 4 * trained if distributed.world_size() > parts else 0
    kept = _count_kept(learner, arguments.train_batch_size, find_block_length(model)) * (
        HALF if is_half else 1
    )
    return _Memory(
        weights=(4 + 2 * is_half) * weights / parts + copied + buckets,
        moments=(4 * sizes[0] + 8 * sum(sizes[1:]) if is_muon else 8 * trained) / parts,
        gradients=4 * trained / parts,
        kept=kept,
        stepping=_count_stepping(groups[0]["params"], 2 if is_half else 4) if is_muon else 0,
        scoring=_count_scoring(model, matrices, scored) + copied,
    )


def _count_parts(arguments: TrainingArguments) -> int:
    """Count the processes over which weights, gradients and optimizer are sharded."""
    return distributed.world_size() if arguments.fsdp else 1


def _count_kept(learner: Any, rows: int, length: int) -> int:
    """Count the bytes that autograd keeps for `rows` rows of `length` tokens, with their logits.

    The forward pass runs on the meta device, which computes nothing. Attention weights are left
    out, because fused attention never stores them.
    """
    own = {part.untyped_storage()._cdata for part in (*learner.parameters(), *learner.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not (
            tensor.ndim == 4 and tensor.shape[2:] == (length, length)
        ):
            kept[storage._cdata] = storage
        return tensor

    ids, size = (
        torch.zeros(rows, length, dtype=torch.long, device="meta"),
        learner.config.vocab_size,
    )
    logits = (4 if choose_device().type == "cpu" else 12) * min(
        rows * length * size, fused.MAX_LOGITS
    )
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            learner(input_ids=ids, labels=ids, skip_logits=True, use_cache=False)
    except (RuntimeError, NotImplementedError):
        # An operation that the meta device lacks: assume 16 bytes for each output of a matrix.
        return logits + 16 * rows * length * sum(
            p.shape[0] for p in learner.parameters() if p.ndim > 1
        )
    return logits + sum(storage.nbytes() for storage in kept.values())


def _count_stepping(matrices: list[torch.Tensor], width: int) -> int:
    """Count the bytes of a step of Muon: all updates, and copies of the matrices of one shape.

    The updates are in float32. The numbers of the five copies have `width` bytes each.
    """
    alike: Counter[torch.Size] = Counter()
    for matrix in matrices:
        for part in split_matrix(matrix):
            alike[part.shape] += part.numel()
    return 4 * alike.total() + 5 * width * max(alike.values(), default=0)


def _count_scoring(model: CausalModel, matrices: list[torch.Tensor], scored: int) -> int:
    """Count the bytes of the logits that are scored at a time, or of the widest layer's output."""
    size, at_once = model.config.vocab_size, documents.DOCUMENTS_AT_ONCE * find_block_length(model)
    positions = min(likelihood.LOGITS_AT_ONCE // size, at_once, 2 * scored)  # overlapping windows
    widest = max((max(matrix.shape) for matrix in matrices), default=0)
    return 4 * positions * max(size, 4 * widest)


def _measure_products() -> float:
    """Measure the floating-point operations a second of this device in a matrix product."""
    matrix = torch.ones(MATRIX, MATRIX, device=choose_device())
    seconds = min(timeit.repeat(lambda: (matrix @ matrix)[0, 0].item(), number=1, repeat=5))
    return 2 * MATRIX**3 / max(seconds, 1e-9)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _megabytes(size: float) -> str:
    return f"{-(-size // 1e8) * 100:.0f}MB"


def _time(seconds: float) -> str:
    return (
        f"about {seconds:,.0f} seconds" if seconds < 120 else f"about {seconds / 60:,.0f} minutes"
    )
