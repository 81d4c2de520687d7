"""The text of a run: its corpus, its tokenizer, trained or loaded, and its training split as token
ids.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung import __version__
from rung.data.corpus import Corpus, load_corpus
from rung.data.packing import PackedTokens, pack
from rung.data.tokenizer import encode_batches, fingerprint_tokenizer, required_vocab_size
from rung.data.tokenizer_loading import PUBLISHED_TOKENIZERS, load_tokenizer
from rung.data.tokenizer_training import TOKENIZERS, build_tokenizer
from rung.device import cache_folder
from rung.errors import RecipeError, did_you_mean
from rung.files import make_once
from rung.ladder import is_counting
from rung.progress import OnProgress, Progress, ignore_progress
from rung.recipe import Recipe

MADE = 3  # one more whenever the same text makes another tokenizer: what was kept before is left
SAMPLE_BYTES = (
    1 << 26
)  # of the train text, from all over it, that a byte-pair tokenizer is trained on


def read_corpus(recipe: Mapping[str, Any]) -> Corpus:
    """The corpus that a recipe, as a page, names, read as it says."""
    reading: Any = {key: recipe.get(key) for key in ("held_out", "column", "encoding")}
    return load_corpus(recipe["corpus"], recipe.get("documents", "paragraphs"), **reading)


def prepare_tokenizer(recipe: Recipe, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer: loaded, or trained on the train split and kept for the next run on
    this corpus.
    """
    spec = recipe.tokenizer
    if "path" in spec or spec.get("kind") in PUBLISHED_TOKENIZERS:
        return load_tokenizer(spec.get("path") or spec["kind"])
    kind, vocab_size = spec["kind"], spec.get("vocab_size")
    if kind not in TOKENIZERS:
        raise RecipeError(
            f"unknown tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}, or a folder"
        )
    stride = sample_stride(recipe, corpus)
    made = hashlib.sha256(
        f"{__version__} {MADE} {corpus.fingerprint} {kind} {vocab_size} {stride}".encode()
    )

    def make(beside: Path) -> None:
        build_tokenizer(kind, corpus.sample_train(stride), vocab_size).save_pretrained(beside)

    return load_tokenizer(
        str(make_once(cache_folder() / "tokenizers" / made.hexdigest()[:16], make))
    )


def sample_stride(recipe: Recipe, corpus: Corpus) -> int:
    """One document in how many the tokenizer is trained on; of words and characters none may be
    missed.
    """
    return -(-corpus.bytes["train"] // SAMPLE_BYTES) if recipe.tokenizer.get("kind") == "bpe" else 1


def skips_empty_lines(recipe: Recipe) -> bool:
    """Whether training leaves empty lines out: there is nothing to learn in them. Counting takes
    them as KenLM does.
    """
    return recipe.documents == "lines" and not is_counting(recipe.rung)


def packed_key(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, skip_empty: bool = False
) -> str:
    """What the packed text of a corpus is kept under."""
    ids = fingerprint_tokenizer(tokenizer)
    return f"{corpus.fingerprint} train {ids}{' without empty lines' * skip_empty}"


def pack_train(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    on_progress: OnProgress = ignore_progress,
    *,
    skip_empty: bool = False,
) -> PackedTokens:
    """The training text as token ids, made once and kept; what was made before a stop is gone on
    from.
    """

    def read(state: Any) -> Iterator[tuple[list[str], Any]]:
        for texts, after in corpus.read_train(state):
            yield [text for text in texts if text.strip() or not skip_empty], after

    on_progress(Progress(stage="tokenizing"))
    total = None if corpus.stream else len(corpus.train)

    return pack(
        lambda state: encode_batches(read(state), tokenizer),
        key=packed_key(corpus, tokenizer, skip_empty=skip_empty),
        vocab_size=required_vocab_size(tokenizer),
        folder=cache_folder() / "packed",
        on_progress=lambda progress: on_progress(replace(progress, total=total)),
    )
