"""What a run records: what it was made of, what training took, and how it was judged."""

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
from rung.device import cache_folder, choose_device, count_cores, describe
from rung.evaluation.compressors import compressor_marks, lzma_after_train
from rung.evaluation.metrics import LZMA_AFTER_TRAIN
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.files import read_cached_value, write_cached_value
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress
from rung.training.checkpoints import last_checkpoint, step_of
from rung.training.train import Trained

logger = logging.getLogger(__name__)

PASSAGE_CHARACTERS = 600
PROMPT_WORDS = 6
PROMPT_CHARACTERS = 120  # where words are as long as sentences, because no spaces part them
PASSAGES = 100  # training documents that one is sought in, where nothing was held out
SAMPLE_TOKENS = 100
TAKES = "seconds"  # beside the marks that are kept: what the one that was left out would take
LEAST_MARKING = 10.0  # seconds that lzma's second mark may take, however short the run is


@contextmanager
def warn_unmoved(model: CausalModel) -> Iterator[None]:
    """Warn where training left every weight as it was: whoever reads the figures would not see
    it.
    """

    def weigh() -> list[tuple[float, float]]:
        weights = (parameter.detach().double() for parameter in model.parameters())
        return [(weight.sum().item(), weight.norm().item()) for weight in weights]

    before = weigh()
    yield
    if weigh() == before:
        logger.warning("nothing was learned: every weight is as it was before")


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase, kind: str) -> dict[str, Any]:
    """What kind it is of, and what tells it from others."""
    return {
        "kind": kind,
        "fingerprint": fingerprint_tokenizer(tokenizer),
        "vocab_size": len(tokenizer),
        "lost": list(lossy_features(tokenizer)),
    }


def describe_surroundings(seed: int) -> dict[str, Any]:
    """With which versions, which seed, and on which machine."""
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
        "hardware": describe(choose_device()),
    }


def note_batches(folder: Path, before: dict[str, Any], rows: int | None) -> dict[str, Any]:
    """From which step on a run has read how many rows a step, where that has changed as it went
    on.
    """
    had = before["recipe"].get("global_batch_size")
    noted = before.get("batches", [{"from_step": 0, "global_batch_size": had}])
    if had == rows and len(noted) == 1:
        return {}
    resumed = last_checkpoint(folder)
    step = step_of(resumed) if resumed else 0
    kept = [batch for batch in noted if batch["from_step"] < step]
    if not kept or kept[-1]["global_batch_size"] != rows:
        kept.append({"from_step": step, "global_batch_size": rows})
    return {"batches": kept} if len(kept) > 1 else {}


def describe_training(trained: Trained) -> dict[str, Any]:
    """What training took."""
    return {
        "seconds": round(trained.seconds, 3),
        "steps": trained.steps,
        "kept_step": trained.kept_step,
        "tokens": trained.tokens,
        "tokens_per_second": round(trained.tokens_per_second, 1),
        "trainable_parameters": trained.trainable_parameters,
        **describe_cpu(trained),
    }


def describe_cpu(trained: Trained) -> dict[str, Any]:
    """The share of the CPU that training got, of how many cores, and whether other processes had
    the rest.
    """
    if trained.cpu_share is None:
        return {}
    return {
        "cpu_share": round(trained.cpu_share, 3),
        "cores": count_cores(),
        "was_busy": trained.was_busy,
    }


def judge(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    on_progress: OnProgress,
    max_time: float | None = None,
    trained: float = 0.0,
) -> dict[str, Any]:
    """Scores on the test split, the compressors' marks, a sample, and a passage token by token.

    Where nothing was held out there is a sample, and no score. The sample ends after `max_time`
    seconds; the marks may take as long as training did, `trained` seconds.
    """
    texts, prompt, passage = corpus.test["text"], find_prompt(corpus), _passage(corpus)
    sampling = Sampling(max_new_tokens=SAMPLE_TOKENS, max_time=max_time)
    sample = generate(model, tokenizer, prompt, sampling).text
    if not len(texts):
        return {"scores": {}, "prompt": prompt, "sample": sample}
    started = time.perf_counter()
    score = score_documents(model, tokenizer, texts, on_progress)
    score = replace(score, seconds=time.perf_counter() - started)
    return {
        "scores": {"test": score.as_dict()},
        **find_marks(corpus, on_progress, trained),
        "prompt": prompt,
        "sample": sample,
        "passage": [[t.text, round(t.bits, 3)] for t in score_text(model, tokenizer, passage)],
    }


def find_marks(corpus: Corpus, on_progress: OnProgress, seconds: float) -> dict[str, Any]:
    """The compressors' `marks` on this corpus, computed once and kept.

    That of lzma after the train text, which can take minutes, is left out where it would take
    longer than `seconds`, and than `LEAST_MARKING`; `marks_left_out` says so. What it would take is
    kept too.
    """
    seconds = max(LEAST_MARKING, seconds)
    on_progress(Progress(stage="comparing"))
    folder = cache_folder() / "marks" / corpus.fingerprint
    found: dict[str, float] = read_cached_value(folder) or compressor_marks(corpus.test["text"])
    takes = found.pop(TAKES, 0.0)
    if LZMA_AFTER_TRAIN not in found and takes <= seconds:
        mark, takes = lzma_after_train(
            corpus.test["text"],
            corpus.train["text"],
            seconds,
            lambda progress: on_progress(replace(progress, note=LZMA_AFTER_TRAIN)),
        )
        found |= {} if mark is None else {LZMA_AFTER_TRAIN: mark}
        write_cached_value(folder, found if mark is not None else found | {TAKES: takes})
    if LZMA_AFTER_TRAIN in found:
        return {"marks": found}
    why = (
        f"{LZMA_AFTER_TRAIN} is left out: it would take about {takes:.0f} s, and this run has "
        f"{seconds:.0f} s for it"
    )
    on_progress(Progress(stage="noted", note=why))
    return {"marks": found, "marks_left_out": why}


def _passage(corpus: Corpus) -> str:
    """The opening of the first test document that is long enough, cut at white space; of training
    where none is.
    """
    texts = corpus.test["text"] if len(corpus.test) else corpus.train["text"][:PASSAGES]
    text = next((t for t in texts if len(t) >= PASSAGE_CHARACTERS), max(texts, key=len))
    if len(text) <= PASSAGE_CHARACTERS:
        return text
    return text[:PASSAGE_CHARACTERS].rsplit(maxsplit=1)[0]


def find_prompt(corpus: Corpus) -> str:
    """The first words of the passage."""
    words = re.match(rf"\s*(?:\S+\s+){{0,{PROMPT_WORDS - 1}}}\S+", _passage(corpus))
    return words.group()[:PROMPT_CHARACTERS] if words else ""
