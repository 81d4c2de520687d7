"""What a run records: what it was made of, what training took, and how it was judged."""

import platform
import re
import time
from dataclasses import replace
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import yaml
from transformers import PreTrainedTokenizerBase

from rung import __version__, runs
from rung.corpus import Corpus
from rung.device import cache_folder, choose_device, count_cores, describe
from rung.evaluate import score_documents, score_text
from rung.evaluate.compressors import compressor_marks
from rung.generate import Sampling, generate
from rung.models import CausalModel
from rung.recipe.stages import Stage, Tell
from rung.tokenizer import fingerprint, losses
from rung.train import Trained

PASSAGE_CHARACTERS = 600
PROMPT_WORDS = 6
PROMPT_CHARACTERS = 120  # where words are as long as sentences, because no spaces part them
PASSAGES = 100  # training documents that one is sought in, where nothing was held out
SAMPLE_TOKENS = 100


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase, kind: str) -> dict[str, Any]:
    """What kind it is of, and what tells it from others."""
    return {
        "kind": kind,
        "fingerprint": fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "lost": list(losses(tokenizer)),
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
    """The share of the CPU that training got, of how many cores, and whether other processes had the rest."""
    if trained.cpu_share is None:
        return {}
    return {"cpu_share": round(trained.cpu_share, 3), "cores": count_cores(), "was_busy": trained.was_busy}


def judge(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    tell: Tell,
    max_time: float | None = None,
) -> dict[str, Any]:
    """Scores on the test split, the compressors' marks, a sample, and a passage token by token.

    Where nothing was held out there is a sample, and no score. The sample ends after `max_time` seconds.
    """
    texts, prompt, passage = corpus.test["text"], find_prompt(corpus), _passage(corpus)
    sampling = Sampling(max_new_tokens=SAMPLE_TOKENS, max_time=max_time)
    sample = generate(model, tokenizer, prompt, sampling).text
    if not len(texts):
        return {"scores": {}, "prompt": prompt, "sample": sample}
    total = len(texts)
    started = time.perf_counter()
    score = score_documents(model, tokenizer, texts, lambda done: tell(Stage(name="scoring", done=done, total=total)))
    score = replace(score, seconds=time.perf_counter() - started)
    tell(Stage(name="comparing"))
    return {
        "scores": {"test": score.as_dict()},
        "marks": find_marks(corpus),
        "prompt": prompt,
        "sample": sample,
        "passage": [[t.text, round(t.bits, 3)] for t in score_text(model, tokenizer, passage)],
    }


def find_marks(corpus: Corpus) -> dict[str, float]:
    """The compressors' marks on this corpus, computed once and kept."""
    path = cache_folder() / "marks" / f"{corpus.fingerprint}.json"
    if not path.exists():
        marks = compressor_marks(corpus.test["text"], corpus.train["text"])
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(path, yaml.safe_dump(marks, sort_keys=False))
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _passage(corpus: Corpus) -> str:
    """The opening of the first test document that is long enough, cut at white space; of training where none is."""
    texts = corpus.test["text"] if len(corpus.test) else corpus.train["text"][:PASSAGES]
    text = next((t for t in texts if len(t) >= PASSAGE_CHARACTERS), max(texts, key=len))
    if len(text) <= PASSAGE_CHARACTERS:
        return text
    return text[:PASSAGE_CHARACTERS].rsplit(maxsplit=1)[0]


def find_prompt(corpus: Corpus) -> str:
    """The first words of the passage."""
    words = re.match(rf"\s*(?:\S+\s+){{0,{PROMPT_WORDS - 1}}}\S+", _passage(corpus))
    return words.group()[:PROMPT_CHARACTERS] if words else ""
