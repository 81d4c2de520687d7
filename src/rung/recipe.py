"""A recipe is a page that says how to make a run; executing it makes the run.

    rung: llama3                 # which rung
    corpus: python-docs          # a name, a path, hf:ORG/NAME
    documents: paragraphs        # what a document is in plain text
    tokenizer: {kind: bpe, vocab_size: 1024}
    model: {hidden_size: 192}    # fields of the rung's config
    minutes: 5                   # or steps: 2000
    train: {learning_rate: 3e-3} # fields of TrainingArguments
    seed: 0

Every key may be left out but `rung`.
"""

import hashlib
import math
import platform
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import yaml
from transformers import PreTrainedTokenizerBase, set_seed

from rung import __version__, runs
from rung.corpus import Corpus, DocumentKind, cache_folder, load_corpus
from rung.device import choose_device, describe
from rung.errors import RecipeError, RunError, did_you_mean
from rung.evaluate import compressor_marks, score_documents, score_text
from rung.generate import Sampling, generate
from rung.models import (
    CausalModel,
    build_model,
    config_fields,
    count_parameters,
    find_rung,
    load,
    make_config,
    match_parameters,
)
from rung.pack import Packed, pack
from rung.tokenizer import (
    PUBLISHED,
    TOKENIZERS,
    build_tokenizer,
    fingerprint,
    load_tokenizer,
    losses,
    suggest_vocab_size,
)
from rung.train import Hooks, Progress, Trained, TrainSettings, check_arguments, last_checkpoint, train

DEFAULT_MINUTES = 5.0
CONTEXT = 256  # tokens a model is trained on at a time
WATCHED_BYTES = 32_000  # of the validation text, read at every evaluation in training
PASSAGE_CHARACTERS = 600
PROMPT_WORDS = 6
SAMPLE_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a run. `tokenizer` has `kind` or `path`, and for a trained kind `vocab_size`."""

    rung: str
    corpus: str = "python-docs"
    documents: DocumentKind = "paragraphs"
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"kind": "bpe"})
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        find_rung(self.rung)
        check_arguments(self.train)
        for key in self.tokenizer:
            if key not in ("kind", "path", "vocab_size"):
                raise RecipeError(f"tokenizer.{key}: {did_you_mean(key, ['kind', 'path', 'vocab_size'])}")
        known = config_fields(self.rung)
        for key in self.model:
            if key not in known:
                raise RecipeError(f"model.{key}: {self.rung} has no such field; {did_you_mean(key, known)}")
        _check_positive("minutes", self.minutes, float)
        _check_positive("steps", self.steps, int)
        if self.minutes is not None and self.steps is not None:
            raise RecipeError(f"minutes ({self.minutes}) and steps ({self.steps}) are both given: choose one")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where the making of a run is: for whoever draws a bar. `total` is None where nobody knows."""

    name: str
    done: int = 0
    total: int | None = None
    note: str = ""


Tell = Callable[[Stage], None]


def read_recipe(path: Path) -> dict[str, Any]:
    """The page as it stands, not yet checked.

    Raises `RecipeError` when it cannot be read or is no mapping.
    """
    try:
        page = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"no recipe at {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(page, dict):
        raise RecipeError(f"{path} is not a recipe: it must be a mapping with the key 'rung'")
    return page


def make_recipe(page: dict[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """The checked recipe that `page` and then the overrides `key=value` make.

    An override's key is one of the recipe's, a dotted one (`train.learning_rate`), or the bare name of a
    field of the model or of TrainingArguments, where only one of them has it. Raises `RecipeError`.
    """
    page = {key: dict(value) if isinstance(value, dict) else value for key, value in page.items()}
    if "rung" not in page:
        raise RecipeError("the recipe names no rung: add 'rung: llama3'")
    find_rung(page["rung"])
    for override in overrides:
        _apply(page, override)
    known = [f.name for f in fields(Recipe)]
    for key in page:
        if key not in known:
            raise RecipeError(f"unknown key {key!r} in the recipe: {did_you_mean(key, known)}")
    for key in ("tokenizer", "model", "train"):
        if key in page and not isinstance(page[key], dict):
            raise RecipeError(f"{key} is {page[key]!r}: it must be a mapping")
    return Recipe(**page)


def execute(recipe: Recipe, folder: Path, tell: Tell = lambda stage: None, *, parameters: int | None = None) -> bool:
    """Make the run that `recipe` describes in `folder`, from the last checkpoint there if there is one.

    `parameters` is the size a trained rung aims at where the recipe does not give its width. Returns
    whether it was finished: False when it was interrupted, the work so far saved.
    """
    runs.make_folder(folder)
    tell(Stage(name="reading"))
    corpus = load_corpus(recipe.corpus, recipe.documents)
    recipe = _complete(recipe, corpus, parameters)
    tokenizer = prepare_tokenizer(recipe, corpus)
    recipe = _choose_width(recipe, tokenizer, parameters)
    tell(Stage(name="tokenizing"))
    packed = pack(
        corpus.train["text"], tokenizer, name=f"{corpus.fingerprint} train", folder=cache_folder() / "packed"
    )
    set_seed(recipe.seed)
    config = make_config(recipe.rung, tokenizer, recipe.model)
    record = _describe(recipe, corpus, tokenizer)
    runs.write_record(folder, record)
    model, trained = _make_model(recipe, config, tokenizer, packed, corpus, folder, tell)
    runs.save_model(folder, model, tokenizer)
    record |= {"parameters": count_parameters(model), "training": _training_facts(trained)}
    if trained.interrupted:
        runs.write_record(folder, record)
        return False
    record |= _judge(model.eval(), tokenizer, corpus, tell)
    runs.write_record(folder, record)
    return True


def prepare_tokenizer(recipe: Recipe, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer: loaded, or trained on the train split and kept for the next run on this corpus."""
    spec = recipe.tokenizer
    if "path" in spec or spec.get("kind") in PUBLISHED:
        return load_tokenizer(spec.get("path") or spec["kind"])
    kind, vocab_size = spec.get("kind", "bpe"), spec.get("vocab_size")
    if kind not in TOKENIZERS:
        raise RecipeError(f"unknown tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}, or a folder")
    key = hashlib.sha256(f"{__version__} {corpus.fingerprint} {kind} {vocab_size}".encode()).hexdigest()[:16]
    folder = cache_folder() / "tokenizers" / key
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        runs.save_model(folder, build_tokenizer(kind, corpus.train["text"], vocab_size))
    return load_tokenizer(str(folder))


def suggest_parameters(minutes: float) -> int:
    """How many weights to train in so many minutes on a laptop (measured: benchmarks/sizes.py).

    The best size grows with the root of the time: 1.8 million at 75 seconds.
    """
    return round(1.8e6 * math.sqrt(minutes / 1.25))


def _complete(recipe: Recipe, corpus: Corpus, parameters: int | None) -> Recipe:
    """The recipe with what it leaves open chosen for this corpus."""
    spec = dict(recipe.tokenizer)
    if spec.get("kind") == "bpe" and spec.get("vocab_size") is None:
        spec["vocab_size"] = suggest_vocab_size(split_bytes(corpus)["train"])
    minutes = recipe.minutes
    if minutes is None and recipe.steps is None and "num_train_epochs" not in recipe.train:
        minutes = DEFAULT_MINUTES
    model = dict(recipe.model)
    if not find_rung(recipe.rung).counts and not {"max_position_embeddings", "n_positions"} & set(model):
        model["max_position_embeddings"] = CONTEXT
    return replace(recipe, tokenizer=spec, minutes=minutes, model=model)


def _choose_width(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, parameters: int | None) -> Recipe:
    if find_rung(recipe.rung).counts or {"hidden_size", "n_embd"} & set(recipe.model):
        return recipe
    target = parameters or suggest_parameters(recipe.minutes or DEFAULT_MINUTES)
    width = match_parameters(recipe.rung, tokenizer, target, recipe.model)
    return replace(recipe, model={**recipe.model, "hidden_size": width})


def split_bytes(corpus: Corpus) -> dict[str, int]:
    """UTF-8 bytes of each split."""
    return {
        name: sum(len(text.encode()) for batch in corpus.split(name).iter(1000) for text in batch["text"])
        for name in ("train", "validation", "test")
    }


def _make_model(
    recipe: Recipe,
    config: transformers.PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    packed: Packed,
    corpus: Corpus,
    folder: Path,
    tell: Tell,
) -> tuple[CausalModel, Trained]:
    """Fit or train it."""
    rung = find_rung(recipe.rung)
    if rung.counts:
        tell(Stage(name="counting"))
        started = time.perf_counter()
        model = rung.model.fit(config, packed.tokens, packed.starts)
        seconds = time.perf_counter() - started
        return model, Trained(steps=0, tokens=len(packed), seconds=seconds, interrupted=False)
    model = build_model(recipe.rung, config).to(choose_device())
    settings = TrainSettings(
        steps=recipe.steps, minutes=recipe.minutes, arguments=recipe.train, seed=recipe.seed
    )
    trained = train(model, tokenizer, packed, folder, settings, _hooks(recipe, tokenizer, corpus, tell))
    return model, trained


def _hooks(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, tell: Tell) -> Hooks:
    watched = _first_texts(corpus.validation["text"], WATCHED_BYTES)
    prompt = _prompt(corpus)

    def show(progress: Progress) -> None:
        note = f"{progress.tokens_per_second:,.0f} tokens/s"
        if progress.loss is not None:
            note += f", loss {progress.loss:.3f}"
        if progress.bits_per_byte is not None:
            note += f", {progress.bits_per_byte:.3f} bits per byte"
        tell(Stage(name="training", done=progress.step, total=progress.steps, note=note))

    sampling = Sampling(max_new_tokens=SAMPLE_TOKENS, seed=recipe.seed)
    return Hooks(
        evaluate=lambda model: score_documents(model, tokenizer, watched).bits_per_byte,
        sample=lambda model: prompt + generate(model, tokenizer, prompt, sampling).text,
        progress=show,
    )


def _judge(model: CausalModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, tell: Tell) -> dict[str, Any]:
    """Scores on the test split, the compressors' marks, a sample, and a passage token by token."""
    texts = corpus.test["text"]
    total = len(texts)
    started = time.perf_counter()
    score = score_documents(
        model, tokenizer, texts, lambda done: tell(Stage(name="scoring", done=done, total=total))
    )
    score = replace(score, seconds=time.perf_counter() - started)
    prompt, passage = _prompt(corpus), _passage(corpus)
    tell(Stage(name="comparing"))
    return {
        "scores": {"test": score.as_dict()},
        "marks": find_marks(corpus),
        "prompt": prompt,
        "sample": generate(model, tokenizer, prompt, Sampling(max_new_tokens=SAMPLE_TOKENS)).text,
        "passage": [[t.text, round(t.bits, 3)] for t in score_text(model, tokenizer, passage)],
    }


def find_marks(corpus: Corpus) -> dict[str, float]:
    """The compressors' marks on this corpus, computed once and kept."""
    path = cache_folder() / "marks" / f"{corpus.fingerprint}.json"
    if not path.exists():
        marks = compressor_marks(corpus.test["text"], corpus.train["text"])
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(path, yaml.safe_dump(marks))
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _passage(corpus: Corpus) -> str:
    """The opening of the first test document that is long enough, cut at white space."""
    texts = corpus.test["text"]
    text = next((t for t in texts if len(t) >= PASSAGE_CHARACTERS), max(texts, key=len))
    if len(text) <= PASSAGE_CHARACTERS:
        return text
    return text[:PASSAGE_CHARACTERS].rsplit(maxsplit=1)[0]


def _prompt(corpus: Corpus) -> str:
    """The first words of the passage."""
    words = re.match(rf"\s*(?:\S+\s+){{0,{PROMPT_WORDS - 1}}}\S+", _passage(corpus))
    return words.group() if words else ""


def _first_texts(texts: Iterable[str], limit: int) -> list[str]:
    kept, size = [], 0
    for text in texts:
        if kept and size + len(text) > limit:
            break
        kept.append(text[:limit])
        size += len(text)
    return kept


def _describe(recipe: Recipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "rung": recipe.rung,
        "recipe": asdict(recipe),
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "documents": {name: len(corpus.split(name)) for name in ("train", "validation", "test")},
            "bytes": split_bytes(corpus),
        },
        "tokenizer": {
            "kind": recipe.tokenizer.get("kind") or recipe.tokenizer["path"],
            "fingerprint": fingerprint(tokenizer),
            "vocab_size": len(tokenizer),
            "lost": list(losses(tokenizer)),
        },
        "versions": {
            "rung": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "datasets": datasets.__version__,
        },
        "seed": recipe.seed,
        "hardware": describe(choose_device()),
    }


def _training_facts(trained: Trained) -> dict[str, Any]:
    return {
        "seconds": round(trained.seconds, 3),
        "steps": trained.steps,
        "tokens": trained.tokens,
        "tokens_per_second": round(trained.tokens_per_second, 1),
    }


def _check_positive(name: str, value: Any, kind: type) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | kind) or not value > 0 or not math.isfinite(value):
        raise RecipeError(f"{name} is {value!r}: it must be a positive {'number' if kind is float else 'whole number'}")


def _apply(page: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: write key=value, as in --set train.learning_rate=1e-3")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML") from error
    section, dot, name = key.partition(".")
    if not dot:
        section, name = _find_section(page["rung"], key)
    if not name:
        page[section] = value
    elif section in ("model", "train", "tokenizer"):
        page[section] = {**(page.get(section) or {}), name: value}
    else:
        raise RecipeError(f"--set {override!r}: {section!r} has no keys; use model, train or tokenizer")


def _find_section(rung: str, key: str) -> tuple[str, str]:
    """Where a bare key belongs: (key, "") for one of the recipe's own, else (section, key)."""
    own = [f.name for f in fields(Recipe)]
    if key in own:
        return key, ""
    model = config_fields(rung)
    arguments = [f.name for f in fields(transformers.TrainingArguments)]
    homes = [section for section, names in (("model", model), ("train", arguments)) if key in names]
    if len(homes) == 2:
        raise RecipeError(f"--set {key}: both model and train have it; write model.{key} or train.{key}")
    if not homes:
        raise RecipeError(f"--set {key}: {rung} has no such setting; {did_you_mean(key, [*own, *model, *arguments])}")
    return homes[0], key


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: `3e-3` is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
