"""The parts of a run's record: what the run was made of, what training took, its scores."""

import logging
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from rung import __version__
from rung.data.corpus import Corpus
from rung.data.tokenizer import fingerprint_tokenizer, lossy_features
from rung.device import choose_device, count_cores, describe_device
from rung.evaluation.compressors import compressor_marks, lzma_after_train
from rung.evaluation.metrics import LZMA_AFTER_TRAIN, SOURCE_MARK
from rung.evaluation.score import score_documents
from rung.evaluation.source import source_mark
from rung.evaluation.surprisal import score_text
from rung.files import cache_folder, read_cached_value, write_cached_value
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress
from rung.recipe import Recipe
from rung.training.checkpoints import last_checkpoint, step_of
from rung.training.train import TrainingResult

logger = logging.getLogger(__name__)

PASSAGE_CHARACTERS = 600
PROMPT_WORDS = 6
# The most characters of a prompt, for scripts in which no spaces part the words.
PROMPT_CHARACTERS = 120
# Training documents among which a passage is looked for, where nothing was held out.
PASSAGE_DOCUMENTS = 100
SAMPLE_TOKENS = 100
# The most of a run's minutes that a sample may take.
SAMPLE_SHARE = 0.02
# The keys, beside the marks that are kept, of the seconds that the mark left out would take, and of
# when that was estimated, in seconds since 1970.
SECONDS, ESTIMATED_AT = "seconds", "estimated_at"
# So many seconds later the machine may be less busy: what was too long is tried again.
ESTIMATE_LASTS = 600.0
# The seconds that lzma's second mark may take, however short the run is.
LEAST_MARK_SECONDS = 10.0


@contextmanager
def warn_if_unchanged(model: CausalModel) -> Iterator[None]:
    """Warn where training left every weight as it was, which the scores would not show."""

    def sum_weights() -> list[tuple[float, float]]:
        weights = (parameter.detach().double() for parameter in model.parameters())
        return [(weight.sum().item(), weight.norm().item()) for weight in weights]

    before = sum_weights()
    yield
    if sum_weights() == before:
        logger.warning("nothing was learned: every weight is as it was before")


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase, kind: str) -> dict[str, Any]:
    """Describe the kind of the tokenizer, and what tells it from others."""
    return {
        "kind": kind,
        "fingerprint": fingerprint_tokenizer(tokenizer),
        "vocab_size": len(tokenizer),
        "lost": list(lossy_features(tokenizer)),
    }


def describe_environment(seed: int) -> dict[str, Any]:
    """Describe the versions, the seed and the machine."""
    return {
        "versions": {
            "rung": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "datasets": datasets.__version__,
        },
        "seed": seed,
        "hardware": describe_device(choose_device()),
    }


def note_batches(folder: Path, before: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Note from which step on a run read how many rows a step.

    It is noted where the number has changed between the run `before` and now.
    """
    had, rows = (each.get("recipe", {}).get("global_batch_size") for each in (before, record))
    noted = before.get("batches", [{"from_step": 0, "global_batch_size": had}])
    if had == rows and len(noted) == 1:
        return {}
    resumed = last_checkpoint(folder)
    step = step_of(resumed) if resumed else 0
    kept = [batch for batch in noted if batch["from_step"] < step]
    if not kept or kept[-1]["global_batch_size"] != rows:
        kept.append({"from_step": step, "global_batch_size": rows})
    return {"batches": kept} if len(kept) > 1 else {}


def describe_training(trained: TrainingResult) -> dict[str, Any]:
    return {
        "seconds": round(trained.seconds, 3),
        "steps": trained.steps,
        "kept_step": trained.kept_step,
        "tokens": trained.tokens,
        "tokens_per_second": round(trained.tokens_per_second, 1),
        "trainable_parameters": trained.trainable_parameters,
        **describe_cpu(trained),
    }


def describe_cpu(trained: TrainingResult) -> dict[str, Any]:
    """Describe the share of the CPU that training got, of how many cores.

    `was_busy` is whether other processes had the rest.
    """
    if trained.cpu_share is None:
        return {}
    return {
        "cpu_share": round(trained.cpu_share, 3),
        "cores": count_cores(),
        "was_busy": trained.was_busy,
    }


def score_run(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    on_progress: OnProgress,
    sample_seconds: float | None = None,
    mark_seconds: float = 0.0,
) -> dict[str, Any]:
    """Score the test split and the compressors' marks, write a sample, and score a passage.

    Where nothing was held out there is a sample, and no score. The sample ends after
    `sample_seconds`; the marks may take `mark_seconds`.
    """
    texts, prompt, passage = corpus.test["text"], find_prompt(corpus), _find_passage(corpus)
    sampling = Sampling(max_new_tokens=SAMPLE_TOKENS, max_time=sample_seconds)
    sample = generate(model, tokenizer, prompt, sampling).text
    if not len(texts):
        return {"scores": {}, "prompt": prompt, "sample": sample}
    started = time.perf_counter()
    score = score_documents(model, tokenizer, texts, on_progress)
    score = replace(score, seconds=time.perf_counter() - started)
    return {
        "scores": {"test": score.as_dict()},
        **find_marks(corpus, on_progress, mark_seconds),
        "prompt": prompt,
        "sample": sample,
        "passage": [[t.text, round(t.bits, 3)] for t in score_text(model, tokenizer, passage)],
    }


def limit_sample_seconds(recipe: Recipe) -> float | None:
    """Return the seconds that a sample may take: a share of the minutes, else None."""
    return SAMPLE_SHARE * 60 * recipe.minutes if recipe.minutes else None


def find_marks(corpus: Corpus, on_progress: OnProgress, seconds: float) -> dict[str, Any]:
    """Compress the corpus for the `marks` of the ruler, once; later they are read from the cache.

    Where the source of the text is known, its own code length is a mark too.

    The mark of lzma after the train text can take minutes. It is left out where it would take
    longer than `seconds` and than `LEAST_MARK_SECONDS`; then `marks_left_out` says so, and the
    seconds that it would take are kept for a while.
    """
    seconds = max(LEAST_MARK_SECONDS, seconds)
    on_progress(Progress(stage="comparing"))
    folder = cache_folder() / "marks" / corpus.fingerprint
    found: dict[str, float] = read_cached_value(folder) or compressor_marks(corpus.test["text"])
    takes, age = found.pop(SECONDS, 0.0), time.time() - found.pop(ESTIMATED_AT, 0.0)
    is_recent = 0 <= age <= ESTIMATE_LASTS
    if LZMA_AFTER_TRAIN not in found and not (is_recent and takes > seconds):
        mark, takes = lzma_after_train(
            corpus.test["text"],
            corpus.train["text"],
            seconds,
            lambda progress: on_progress(replace(progress, note=LZMA_AFTER_TRAIN)),
        )
        found |= {} if mark is None else {LZMA_AFTER_TRAIN: mark}
        estimate = {SECONDS: takes, ESTIMATED_AT: time.time()} if mark is None else {}
        write_cached_value(folder, found | estimate)
    if (mark := source_mark(corpus.test["text"])) is not None:
        found |= {SOURCE_MARK: mark}
    if LZMA_AFTER_TRAIN in found:
        return {"marks": found}
    why = (
        f"{LZMA_AFTER_TRAIN} is left out: it would take about {takes:.0f} s, and this run has "
        f"{seconds:.0f} s for it"
    )
    on_progress(Progress(stage="noted", note=why))
    return {"marks": found, "marks_left_out": why}


def _find_passage(corpus: Corpus) -> str:
    """Take the opening of the first test document that is long enough, cut at white space.

    Where there is no test text, it is of the training text.
    """
    texts = corpus.test["text"] if len(corpus.test) else corpus.train["text"][:PASSAGE_DOCUMENTS]
    text = next((t for t in texts if len(t) >= PASSAGE_CHARACTERS), max(texts, key=len))
    if len(text) <= PASSAGE_CHARACTERS:
        return text
    return text[:PASSAGE_CHARACTERS].rsplit(maxsplit=1)[0]


def find_prompt(corpus: Corpus) -> str:
    """Return the first words of the passage."""
    return take_first_words(_find_passage(corpus))


def take_first_words(text: str) -> str:
    """Return the first words of a text, with the white space before them."""
    words = re.match(rf"\s*(?:\S+\s+){{0,{PROMPT_WORDS - 1}}}\S+", text)
    return words.group()[:PROMPT_CHARACTERS] if words else ""
