"""A recipe is a page that says how to make a run.

    rung: llama3                 # which rung, or which size of one: llama3-nano (`rung sizes`)
    corpus: python-docs          # a name, a path or several, hf:ORG/NAME
    column: body                 # the text column of tables
    encoding: latin-1            # of files that are not UTF-8
    documents: paragraphs        # what a document is in plain text
    held_out: 0.05               # of a text without splits, for validation and again for test
    tokenizer: {kind: bpe, vocab_size: 1024}
    model: {hidden_size: 192}    # fields of the rung's config
    minutes: 5                   # or steps: 2000
    train: {learning_rate: 3e-3} # fields of TrainingArguments
    global_batch_size: 32        # blocks a step, over all processes and all that a step accumulates
    dropout: 0.1                 # in training, in the model's own places or in GPT-2's
    carry_state: true            # for rnn: begin each stretch with the state of the last one
    start: bigram                # for rnn and rnn-attention: what it knows before its first step
    teacher: runs/a,runs/b       # whose distributions are learned too; ngram for gpt2 and llama3
    counting: {memory: 2GB}      # for ngram: the engine, and the memory it may use
    base: runs/python-docs/llama3 # to go on from: a run, a model folder, a Hub id
    lora: 8                      # of that base, train only a change of this rank
    seed: 0

Every key may be left out but `rung`. `workflows/train.py` makes the run.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from rung.data.files import DocumentKind
from rung.data.tokenizer_loading import PUBLISHED_TOKENIZERS
from rung.errors import RecipeError, did_you_mean
from rung.ladder import is_counting
from rung.models import Rung, config_fields, find_rung
from rung.models.ngram.counting_settings import CountingSettings
from rung.models.sizes import resolve_size
from rung.models.starts import check_start
from rung.training.argument_checks import check_arguments, check_gradient_checkpointing
from rung.training.distillation import check_teacher
from rung.training.lora import check_lora
from rung.training.settings import check_duration
from rung.training.tbptt import check_carry_state

LENGTHS = {"steps", "minutes", "num_train_epochs"}  # how long a run trains
MOST_TOKENS = 2**31 - 1
SECTIONS = ("tokenizer", "model", "train", "counting")  # the keys that hold keys


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a run. `tokenizer` has `kind` or `path`, and for a trained kind `vocab_size`; it
    is a base's own.

    `global_batch_size` is shared out evenly among the processes; left out, it follows from `train`
    and from how many there are; `held_out`, left out, is chosen for the text. A run is resumed with
    the one that it began with. A size's name as `rung` becomes the rung and the size's `model`
    fields.
    """

    rung: str
    corpus: str | list[str] = "python-docs"
    documents: DocumentKind = "paragraphs"
    column: str | None = None
    encoding: str | None = None
    held_out: float | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    global_batch_size: int | None = None
    dropout: float = 0.0
    carry_state: bool = False
    start: str | None = None
    teacher: str | None = None
    counting: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    lora: int | None = None
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0

    @property
    def entry(self) -> Rung:
        """The rung's entry in the registry."""
        return find_rung(self.rung)

    def __post_init__(self) -> None:
        _normalize(self)
        _check_texts(self)
        _check_tokenizer(self.tokenizer)
        _check_fields(self)
        _check_counting(self.rung, self.counting)
        _check_held_out(self.rung, self.held_out)
        _check_training(self)
        if is_counting(self.rung):
            _check_counted(self)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the page as it stands, not yet checked.

    Raises `RecipeError` when it cannot be read or is not a mapping.
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


def make_recipe(page: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """The checked recipe that `page` and then the overrides make: `key=value`, or a mapping.

    An override's key is one of the recipe's, a dotted one (`train.learning_rate`), or the bare name
    of a field of the model or of TrainingArguments, where only one of them has it. Raises
    `RecipeError`.
    """
    page = {key: dict(value) if isinstance(value, dict) else value for key, value in page.items()}
    if not isinstance(overrides, Mapping):
        overrides = dict(map(read_override, overrides))
    if LENGTHS & {key.removeprefix("train.") for key in overrides}:
        page = leave_length_open(page)
    if "rung" not in page:
        raise RecipeError("the recipe names no rung: add 'rung: llama3'")
    find_rung(page["rung"])
    for key, value in overrides.items():
        _apply(page, key, value)
    known = [f.name for f in fields(Recipe)]
    for key in page:
        if key not in known:
            raise RecipeError(f"unknown key {key!r} in the recipe: {did_you_mean(key, known)}")
    for key in SECTIONS:
        if key in page and not isinstance(page[key], dict):
            raise RecipeError(f"{key} is {page[key]!r}: it must be a mapping")
    if page["rung"] == "ngram" and page.get("model", {}).get("order") in ("inf", math.inf):
        page["rung"] = "infini-gram"  # what an n-gram of any length is called
        del page["model"]["order"]
    return Recipe(**page)


def _normalize(recipe: Recipe) -> None:
    """Turn a size into its rung and fields, and fill in the tokenizer; the recipe is being made."""
    find_rung(recipe.rung)
    rung, model = resolve_size(recipe.rung, recipe.model)
    object.__setattr__(recipe, "rung", rung)
    object.__setattr__(recipe, "model", model)
    check_arguments(recipe.train)
    object.__setattr__(recipe, "corpus", _check_corpus(recipe))
    _check_base(recipe)
    own = {"path": recipe.base} if recipe.base else {"kind": "bpe"}
    if recipe.base and recipe.tokenizer not in ({}, own):
        raise RecipeError(
            f"tokenizer is {recipe.tokenizer}, but {recipe.base} reads its own tokens: leave it out"
        )
    if not {"kind", "path"} & set(recipe.tokenizer):
        object.__setattr__(recipe, "tokenizer", {**own, **recipe.tokenizer})


def _check_fields(recipe: Recipe) -> None:
    """Raise `RecipeError` for a key of `model` that the rung's configuration does not have."""
    known = config_fields(recipe.rung)
    for key in recipe.model:
        if key not in known:
            listed = f"all are the fields of {recipe.entry.config_class.__name__}"
            near = did_you_mean(key, known, listed)
            raise RecipeError(f"model.{key}: {recipe.rung} has no such field; {near}")


def _check_training(recipe: Recipe) -> None:
    """Raise `RecipeError` for a setting of training that is none, or that contradicts another."""
    if not isinstance(recipe.carry_state, bool):
        raise RecipeError(f"carry_state is {recipe.carry_state!r}: it must be true or false")
    check_start(recipe.rung, recipe.start)
    check_teacher(recipe.rung, recipe.teacher)
    if recipe.carry_state:
        check_carry_state(recipe.entry.model_class, recipe.train)
    if not is_counting(recipe.rung):
        check_gradient_checkpointing(recipe.rung, recipe.entry.model_class, recipe.train)
    check_seed(recipe.seed)
    check_positive("minutes", recipe.minutes, float)
    check_positive("steps", recipe.steps, int)
    is_number = isinstance(recipe.dropout, int | float) and not isinstance(recipe.dropout, bool)
    if not is_number or not 0 <= recipe.dropout < 1:
        raise RecipeError(f"dropout is {recipe.dropout!r}: it must be a number from 0 up to 1")
    check_positive("global_batch_size", recipe.global_batch_size, int)
    check_duration(recipe.steps, recipe.minutes, recipe.train)


def _check_texts(recipe: Recipe) -> None:
    """Raise `RecipeError` for a name that is not a text, or is empty."""
    names = {
        "documents": recipe.documents,
        "counting.engine": recipe.counting.get("engine", "numpy"),
    }
    names |= {
        f"tokenizer.{key}": recipe.tokenizer[key]
        for key in ("kind", "path")
        if key in recipe.tokenizer
    }
    for name, value in names.items():
        if not isinstance(value, str) or not value:
            raise RecipeError(f"{name} is {value!r}: it must be a name")


def _check_tokenizer(tokenizer: dict[str, Any]) -> None:
    known = ["kind", "path", "vocab_size"]
    for key in tokenizer:
        if key not in known:
            raise RecipeError(f"tokenizer.{key}: {did_you_mean(key, known)}")
    _check_vocab_size(tokenizer)


def _check_vocab_size(tokenizer: dict[str, Any]) -> None:
    """Raise `RecipeError` for a size that is not one, or of a vocabulary that exists already."""
    size, made = tokenizer.get("vocab_size"), tokenizer.get("path") or tokenizer.get("kind")
    if size is None:
        return
    check_positive("tokenizer.vocab_size", size, int)
    if size > MOST_TOKENS:
        raise RecipeError(f"tokenizer.vocab_size is {size}: it must be {MOST_TOKENS:,} or less")
    if "path" in tokenizer or made in PUBLISHED_TOKENIZERS:
        raise RecipeError(
            f"tokenizer.vocab_size is {size}, but {made} has its vocabulary already: leave it out"
        )


def leave_length_open(page: dict[str, Any]) -> dict[str, Any]:
    """Return the page without how long to train, for where something else says it."""
    page = {key: value for key, value in page.items() if key not in LENGTHS}
    if isinstance(page.get("train"), dict):
        page["train"] = {key: value for key, value in page["train"].items() if key not in LENGTHS}
    return page


def _check_counting(rung: str, counting: dict[str, Any]) -> None:
    if not counting:
        return
    if rung != "ngram":
        raise RecipeError(
            f"counting is {counting}: only ngram counts with an engine, and the rung is {rung}"
        )
    known = [f.name for f in fields(CountingSettings)]
    for key in counting:
        if key not in known:
            raise RecipeError(f"counting.{key}: {did_you_mean(key, known)}")
    CountingSettings(**counting)


def _check_counted(recipe: Recipe) -> None:
    """Raise `RecipeError` for settings that only training by gradients would heed."""
    idle = ("train", "steps", "global_batch_size", "dropout")
    if said := [f"{name} is {getattr(recipe, name)}" for name in idle if getattr(recipe, name)]:
        raise RecipeError(
            f"{' and '.join(said)}, but {recipe.rung} is fitted by counting in one pass, without "
            f"steps: leave it out"
        )


def _check_held_out(rung: str, share: Any) -> None:
    if share is None:
        return
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 0.5:
        raise RecipeError(
            f"held_out is {share!r}: it must be the share of the documents that is kept for "
            f"validation and again for "
            "test, from 0 up to 0.5"
        )
    if share == 0 and not is_counting(rung):
        raise RecipeError(
            f"held_out is 0, but {rung} is trained until validation text says that it is best: "
            f"hold out some, as in "
            "held_out=0.01; only rungs that count can take all of a text"
        )


def _check_corpus(recipe: Recipe) -> str | list[str]:
    """Return the corpus; it is a list only where it is several paths."""
    corpus = [recipe.corpus] if isinstance(recipe.corpus, str) else recipe.corpus
    if (
        not isinstance(corpus, list | tuple)
        or not corpus
        or not all(isinstance(c, str) and c for c in corpus)
    ):
        raise RecipeError(
            f"corpus is {recipe.corpus!r}: it must be a name, a path, or a list of paths"
        )
    for name in ("column", "encoding"):
        value = getattr(recipe, name)
        if value is not None and not (isinstance(value, str) and value):
            raise RecipeError(f"{name} is {value!r}: it must be a text")
    return corpus[0] if len(corpus) == 1 else list(corpus)


def _check_base(recipe: Recipe) -> None:
    if recipe.lora is not None:
        check_lora(recipe.lora, recipe.base)
    if recipe.base is None:
        return
    if not isinstance(recipe.base, str) or not recipe.base:
        raise RecipeError(
            f"base is {recipe.base!r}: it must name a run, a model folder or a Hub id"
        )
    if is_counting(recipe.rung):
        raise RecipeError(
            f"base is {recipe.base}, but {recipe.rung} is fitted by counting in one pass, with "
            f"nothing to go on from: fit it on all the text at once; `rung export FILE OUT --to "
            f"hf` makes a model folder of an ARPA file"
        )


def check_seed(seed: Any) -> None:
    """Raise `RecipeError` for a seed that numpy, which is seeded too, cannot take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise RecipeError(f"seed is {seed!r}: it must be a whole number from 0 to {2**32 - 1}")


def check_positive(name: str, value: Any, kind: type) -> None:
    """Raise `RecipeError` for a value that is given and is not a positive number of that kind."""
    if value is None:
        return
    good = isinstance(value, int | float) if kind is float else isinstance(value, int)
    if isinstance(value, bool) or not good or not 0 < value < math.inf:
        raise RecipeError(
            f"{name} is {value!r}: it must be a positive "
            f"{'number' if kind is float else 'whole number'}"
        )


def read_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of `key=value`.

    Raises `RecipeError` for another form, and for a value that is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"--set {override!r}: write key=value, as in --set train.learning_rate=1e-3"
        )
    try:
        return key, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML") from error


def _apply(page: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    if not dot:
        section, name = _find_section(page["rung"], key)
    if not name:
        page[section] = value
    elif section in SECTIONS:
        page[section] = {**(page.get(section) or {}), name: value}
    else:
        raise RecipeError(f"--set {key}: {section!r} has no keys; use {', '.join(SECTIONS)}")


def _find_section(rung: str, key: str) -> tuple[str, str]:
    """Return where a bare key belongs: (key, "") for the recipe's own, else (section, key)."""
    own = [f.name for f in fields(Recipe)]
    if key in own:
        return key, ""
    if key == "vocab_size":  # the model's follows from it
        return "tokenizer", key
    model = config_fields(rung)
    arguments = [f.name for f in fields(TrainingArguments)]
    homes = [section for section, names in (("model", model), ("train", arguments)) if key in names]
    if len(homes) == 2:
        raise RecipeError(
            f"--set {key}: both model and train have it; write model.{key} or train.{key}"
        )
    if not homes:
        listed = (
            f"all are the fields of a recipe, of {find_rung(rung).config_class.__name__} and of "
            f"TrainingArguments"
        )
        near = did_you_mean(key, [*own, *model, *arguments], listed)
        raise RecipeError(f"--set {key}: {rung} has no such setting; {near}")
    return homes[0], key


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads the numbers of YAML 1.2, such as `3e-3`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
