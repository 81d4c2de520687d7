"""Prepare the text of a recipe: its corpus, its tokenizer, and its packed tokens."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung import __version__, distributed, runs
from rung.data.corpus import Corpus, check_documents, load_corpus
from rung.data.packing import PackedTokens, find_packed, pack_texts
from rung.data.tokenizer import fingerprint_tokenizer
from rung.data.tokenizer_loading import PUBLISHED_TOKENIZERS, load_tokenizer
from rung.data.tokenizer_training import TOKENIZERS, build_tokenizer, suggest_vocab_size
from rung.errors import RecipeError, RunError, did_you_mean
from rung.evaluation.documents import take_texts
from rung.files import cache_folder, make_once
from rung.models import make_config
from rung.models.loading import locate_model
from rung.models.ngram.counting_settings import CountingSettings
from rung.progress import OnProgress, Progress, ignore_progress
from rung.recipe import Recipe
from rung.training.arguments import find_global_batch_size, make_training_arguments
from rung.training.distillation import list_runs
from rung.training.settings import TrainSettings
from rung.training.trackers import check_trackers
from rung.workflows.base import describe_base, describe_teachers, load_base
from rung.workflows.record import find_marks
from rung.workflows.training_plan import TrainingPlan

DEFAULT_MINUTES = 5.0
# Tokens of a training row for runs of five minutes or less; twice as many in four times as long.
CONTEXT = 256
LONGEST_CONTEXT = 1024
# The most of a run's minutes that the compressors' marks may take.
MARKS_SHARE = 0.1
# Bytes of the validation text that are scored at every evaluation in training.
VALIDATION_BYTES = 32_000
# To be raised by one whenever the same text gives another tokenizer, so that no old one is used.
TOKENIZER_VERSION = 3
# Bytes of the training text, from all over it, that a byte-pair tokenizer is trained on.
SAMPLE_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class PreparedText:
    """What a run is made of: its recipe in full, its text, its tokenizer, its packed tokens.

    Pickled for other processes, it has neither the corpus nor the packed tokens: each maps the
    tokens into memory from the cache.
    """

    recipe: Recipe
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    packed_key: str  # of the packed tokens in the cache
    models: dict[str, Any]  # what the record says of those that the run goes on or learns from
    began: float  # when the recipe's minutes began, by the main process's clock
    corpus: Corpus | None = field(repr=False)
    packed: PackedTokens = field(repr=False)
    plan: TrainingPlan | None = None  # made by `fit_budget`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "corpus": None, "packed": None}


def prepare(recipe: Recipe, folder: Path, on_progress: OnProgress, began: float) -> PreparedText:
    """Prepare the text of a recipe for the run in `folder`. All processes call this.

    Raises `RungError` for what the recipe may not ask, and for text that cannot be read.
    """
    check_recipe(recipe, folder)
    prepared = _prepare_on_main(fill_batch(recipe), folder, on_progress, began)
    return replace(prepared, packed=_open_packed(prepared))


@distributed.on_main
def _prepare_on_main(
    recipe: Recipe, folder: Path, on_progress: OnProgress, began: float
) -> PreparedText:
    base = load_base(recipe) if recipe.base else None
    on_progress(Progress(stage="reading"))
    corpus = read_corpus(asdict(recipe))
    on_progress(Progress(stage="read", note=corpus.describe()))
    recipe = fill_recipe(recipe, corpus)
    tokenizer = prepare_tokenizer(recipe, corpus)
    # Making it refuses what is not its tokenizer's.
    config = base.config if base else make_config(recipe.rung, tokenizer, recipe.model)
    models = describe_base(recipe.base, base) if base else {}
    models |= describe_teachers(recipe, config, tokenizer)
    skip_empty = skips_empty_lines(recipe)
    packed = pack_train(corpus, tokenizer, on_progress, skip_empty=skip_empty)
    # The marks are found before training, which then knows what they took of the minutes.
    if recipe.minutes and corpus.bytes["test"]:
        find_marks(corpus, on_progress, MARKS_SHARE * 60 * recipe.minutes)
    return PreparedText(
        recipe=recipe,
        folder=folder,
        tokenizer=tokenizer,
        packed_key=find_packed_key(corpus, tokenizer, skip_empty=skip_empty),
        models=models,
        began=began,
        corpus=corpus,
        packed=packed,
    )


@distributed.raise_together
def _open_packed(prepared: PreparedText) -> PackedTokens:
    """Map the packed tokens into memory, as the main process left them in the cache."""
    if prepared.packed is not None:
        return prepared.packed
    folder = cache_folder() / "packed"
    packed = find_packed(prepared.packed_key, folder)
    if packed is None:
        raise RunError(
            f"process {distributed.rank()} finds no text in {folder}: RUNG_CACHE must be one "
            f"folder for all machines"
        )
    return packed


def check_recipe(recipe: Recipe, folder: Path) -> None:
    """Raise `RungError` for what can be refused before a text is read.

    It is the documents of a corpus that has its own, the model, teachers, trackers, memory, the
    Trainer's arguments, and a batch that the processes cannot share.
    """
    if recipe.documents != "paragraphs" and not (folder / runs.RECORD).exists():
        check_documents(recipe.corpus, recipe.documents)
    if not recipe.base:
        make_config(recipe.rung, None, recipe.model)
    for name in list_runs(recipe.teacher):
        locate_model(name)
    check_trackers(recipe.train)
    if recipe.entry.counts:
        CountingSettings(**recipe.counting).check_memory()
        return
    settings = TrainSettings(
        arguments=recipe.train, global_batch_size=recipe.global_batch_size, lora=recipe.lora
    )
    make_training_arguments(settings, folder, 1)


def fill_batch(recipe: Recipe) -> Recipe:
    """Choose how the processes train where the recipe leaves it open: the rung's own arguments,
    and the rows of a step.
    """
    if recipe.entry.counts:
        return recipe
    if not recipe.base:
        own = dict(recipe.entry.train)
        # They were chosen for Muon, and for a head that is not tied.
        if "optim" in recipe.train or recipe.model.get("tie_word_embeddings"):
            own.pop("optim_args", None)
        recipe = replace(recipe, train={**own, **recipe.train})
    if recipe.global_batch_size:
        return recipe
    return replace(recipe, global_batch_size=find_global_batch_size(recipe.train))


def choose_learning_rate(recipe: Recipe) -> Recipe:
    """Choose the rung's learning rate for the recipe's width, where the recipe leaves it open.

    A model that goes on from another's weights keeps to the Trainer's.
    """
    if recipe.entry.counts or recipe.base or "learning_rate" in recipe.train:
        return recipe
    width = make_config(recipe.rung, None, recipe.model).hidden_size
    rate = recipe.entry.find_learning_rate(width)
    return replace(recipe, train={**recipe.train, "learning_rate": rate})


def fill_recipe(recipe: Recipe, corpus: Corpus) -> Recipe:
    """Choose for this corpus what the recipe leaves open, but for the model's width."""
    spec = dict(recipe.tokenizer)
    if spec.get("kind") == "bpe" and spec.get("vocab_size") is None:
        spec["vocab_size"] = suggest_vocab_size(corpus.bytes["train"])
    recipe = replace(recipe, tokenizer=spec)
    if recipe.entry.counts:
        return recipe
    if recipe.minutes is None and recipe.steps is None and "num_train_epochs" not in recipe.train:
        recipe = replace(recipe, minutes=DEFAULT_MINUTES)
    if not recipe.base:
        recipe = replace(recipe, model={**recipe.entry.model, **recipe.model})
    if not recipe.base and not {"max_position_embeddings", "n_positions"} & set(recipe.model):
        model = {**recipe.model, "max_position_embeddings": _choose_context(recipe)}
        recipe = replace(recipe, model=model)
    return recipe


def _choose_context(recipe: Recipe) -> int:
    times = max(1.0, (recipe.minutes or DEFAULT_MINUTES) / DEFAULT_MINUTES)
    return min(LONGEST_CONTEXT, recipe.entry.context * 2 ** int(math.log(times, 4)))


def read_corpus(recipe: Mapping[str, Any]) -> Corpus:
    """Read the corpus that a recipe names, given as a mapping of its keys."""
    reading: Any = {key: recipe.get(key) for key in ("held_out", "column", "encoding")}
    return load_corpus(recipe["corpus"], recipe.get("documents", "paragraphs"), **reading)


def sample_validation(corpus: Corpus) -> list[str]:
    """Take the validation documents that are scored at every evaluation in training."""
    return take_texts(corpus.validation["text"], VALIDATION_BYTES)


def prepare_tokenizer(recipe: Recipe, corpus: Corpus) -> PreTrainedTokenizerBase:
    """Load the recipe's tokenizer, or train it on the train split.

    A trained one is kept for the next run on this corpus.
    """
    spec = recipe.tokenizer
    if "path" in spec or spec.get("kind") in PUBLISHED_TOKENIZERS:
        return load_tokenizer(spec.get("path") or spec["kind"])
    kind, vocab_size = spec["kind"], spec.get("vocab_size")
    if kind not in TOKENIZERS:
        raise RecipeError(
            f"unknown tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}, or a folder"
        )
    stride = find_sample_stride(recipe, corpus)
    facts = f"{__version__} {TOKENIZER_VERSION} {corpus.fingerprint} {kind} {vocab_size} {stride}"
    name = hashlib.sha256(facts.encode()).hexdigest()[:16]
    kept = cache_folder() / "tokenizers" / name
    with make_once(kept) as beside:
        if beside:
            build_tokenizer(kind, corpus.sample_train(stride), vocab_size).save_pretrained(beside)
    return load_tokenizer(str(kept))


def find_sample_stride(recipe: Recipe, corpus: Corpus) -> int:
    """Return n where the tokenizer is trained on every n-th document.

    It is 1 for words and characters, of which none may be missed.
    """
    return -(-corpus.bytes["train"] // SAMPLE_BYTES) if recipe.tokenizer.get("kind") == "bpe" else 1


def skips_empty_lines(recipe: Recipe) -> bool:
    """Whether empty lines are left out, in which there is nothing to learn.

    Counting takes them, as KenLM does.
    """
    return recipe.documents == "lines" and not recipe.entry.counts


def find_packed_key(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, skip_empty: bool = False
) -> str:
    """Return the key of a corpus's packed tokens in the cache."""
    ids = fingerprint_tokenizer(tokenizer)
    return f"{corpus.fingerprint} train {ids}{' without empty lines' * skip_empty}"


def pack_train(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    on_progress: OnProgress = ignore_progress,
    *,
    skip_empty: bool = False,
) -> PackedTokens:
    """Encode the training text once, and keep it; after a stop it goes on from where it was."""
    on_progress(Progress(stage="tokenizing"))
    return pack_texts(
        partial(corpus.read_train, skip_empty=skip_empty),
        tokenizer,
        key=find_packed_key(corpus, tokenizer, skip_empty=skip_empty),
        folder=cache_folder() / "packed",
        on_progress=on_progress,
        total=None if corpus.stream else len(corpus.train),
    )
