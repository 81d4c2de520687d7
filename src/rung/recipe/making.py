"""Making what a recipe says: text, tokenizer, model, training, scores, all into one run folder."""

import functools
import hashlib
import logging
import math
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import yaml
from transformers import PreTrainedTokenizerBase, set_seed

from rung import __version__, runs
from rung.corpus import SPLITS, Corpus, cache_folder, load_corpus
from rung.device import choose_device, describe, keep_freed_memory
from rung.errors import RecipeError, RunError, RungError, did_you_mean
from rung.evaluate import compressor_marks, first_texts, score_documents, score_text
from rung.generate import Sampling, generate
from rung.models import CausalModel, build_model, count_parameters, find_rung, load, make_config, match_parameters
from rung.models.ngram.engines import Counting, choose_counter
from rung.pack import Packed, pack
from rung.recipe import Recipe, make_recipe
from rung.recipe.base import describe_base, load_base
from rung.recipe.switches import PLAIN, Judged, Switches, choose_fitting, prepare_switches
from rung.tokenizer import (
    PUBLISHED,
    TOKENIZERS,
    build_tokenizer,
    encode_documents,
    fingerprint,
    load_tokenizer,
    losses,
    suggest_vocab_size,
)
from rung.train import Hooks, Progress, Trained, TrainSettings, check_trackers, last_checkpoint, train

logger = logging.getLogger(__name__)

DEFAULT_MINUTES = 5.0
CONTEXT = 256  # tokens a model is trained on at a time
WATCHED_BYTES = 32_000  # of the validation text, read at every evaluation in training
PASSAGE_CHARACTERS = 600
PROMPT_WORDS = 6
SAMPLE_TOKENS = 100


@dataclass(frozen=True)
class Stage:
    """Where the making of a run is: for whoever draws a bar. `total` is None where nobody knows."""

    name: str
    done: int = 0
    total: int | None = None
    note: str = ""


Tell = Callable[[Stage], None]


def execute(recipe: Recipe, folder: Path, tell: Tell = lambda stage: None) -> bool:
    """Make the run that `recipe` describes in `folder`, from the last checkpoint there if there is one.

    Returns whether it was finished: False when it was interrupted, the work so far saved. Raises `RungError`
    for what the user can mend.
    """
    check_trackers(recipe.train)
    base = load_base(recipe) if recipe.base else None
    runs.make_folder(folder)
    tell(Stage(name="reading"))
    corpus = load_corpus(recipe.corpus, recipe.documents)
    recipe = _complete(recipe, corpus)
    tokenizer = prepare_tokenizer(recipe, corpus)
    recipe = _choose_width(recipe, tokenizer)
    if base is None:
        make_config(recipe.rung, tokenizer, recipe.model)  # refuses what it must before anything is written
    tell(Stage(name="tokenizing"))
    packed = pack(
        encode_documents(corpus.train["text"], tokenizer),
        key=f"{corpus.fingerprint} train {fingerprint(tokenizer)}",
        vocab_size=len(tokenizer),
        folder=cache_folder() / "packed",
    )
    record = _describe(recipe, corpus, tokenizer) | (describe_base(recipe, base) if base else {})
    _begin(folder, record)
    set_seed(recipe.seed)
    counts = find_rung(recipe.rung).counts
    tell(Stage(name="counting" if counts else "measuring"))
    hooks = _hooks(recipe, tokenizer, corpus, tell)
    try:
        make = _count if counts else functools.partial(_learn, base=base)
        model, trained = make(recipe, tokenizer, packed, folder, hooks)
    except RungError:
        if counts:  # nothing is there to resume
            (folder / runs.RECORD).unlink()
        raise
    runs.save_model(folder, model, tokenizer)
    record |= {"parameters": count_parameters(model), "training": _training_facts(trained)}
    if trained.interrupted:
        runs.write_record(folder, record)
        return False
    record |= _judge(model.eval(), tokenizer, corpus, tell)
    runs.write_record(folder, record)
    return True


def read_begun(folder: Path) -> Recipe:
    """The recipe of the run that was begun in `folder`.

    Raises `RunError` when there is nothing to resume.
    """
    recipe = runs.read_record(folder).get("recipe")
    if runs.is_finished(folder) or recipe is None:
        raise RunError(f"{folder} is finished: there is nothing to resume")
    return make_recipe(recipe)


def check_unused(folder: Path) -> None:
    """Raise `RunError` when something in `folder` would be lost."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty: go on with --resume, or choose another folder with --out")


def evaluate_run(
    run: str,
    corpus: str,
    split: str,
    documents: str,
    tell: Tell = lambda stage: None,
    switches: Switches = PLAIN,
) -> dict[str, Any]:
    """Score a run on one split of `corpus`, by default its own; text without splits is scored whole.

    The switches' scores stand beside the plain one, under the switch's name. Raises `RunError` when the corpus is
    left open and the run does not know one.
    """
    model, tokenizer = load(run)
    record = runs.read_record(Path(run)) if (Path(run) / runs.RECORD).exists() else {}
    recipe = record.get("recipe", {})
    if not (corpus or recipe):
        raise RunError(
            f"{run} was not trained by rung and has no corpus of its own: name one, as in `rung eval {run} my.txt`"
        )
    kind: Any = documents or recipe.get("documents", "paragraphs")  # held to what there is when the text is read
    tell(Stage(name="reading"))
    read_own = functools.partial(_read_own, run, record) if recipe else None
    text = load_corpus(corpus, kind, whole=True) if corpus else _read_own(run, record, kind)
    name = record.get("rung", model.config.model_type)
    judged = Judged(run, name, model.to(choose_device()), tokenizer)
    scorers = prepare_switches(switches, judged, choose_fitting(text, split, read_own)) if switches else {}
    texts = text.split(split)["text"]
    total = len(texts)
    score = score_documents(model, tokenizer, texts, lambda done: tell(Stage(name="scoring", done=done, total=total)))
    facts = {"run": run, "rung": name, "corpus": text.name, "split": split, **score.as_dict()}
    for switch, scorer in scorers.items():
        facts[switch] = scorer(texts, lambda *stage: tell(Stage(*stage))).as_dict()
    return facts


def _read_own(run: str, record: dict[str, Any], documents: Any = "") -> Corpus:
    """The corpus that the run was trained on."""
    recipe = record["recipe"]
    text = load_corpus(recipe["corpus"], documents or recipe.get("documents", "paragraphs"))
    if text.fingerprint != record["corpus"]["fingerprint"]:
        logger.warning("%s has changed since %s was trained on it", recipe["corpus"], run)
    return text


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
    """How many weights to train in so many minutes on a laptop (benchmarks/sizes.py compares some).

    The best size grows with the root of the time: 0.9 million at 75 seconds.
    """
    return round(0.9e6 * math.sqrt(minutes / 1.25))


def _complete(recipe: Recipe, corpus: Corpus) -> Recipe:
    """The recipe with what it leaves open chosen for this corpus."""
    spec = dict(recipe.tokenizer)
    if spec.get("kind") == "bpe" and spec.get("vocab_size") is None:
        spec["vocab_size"] = suggest_vocab_size(split_bytes(corpus)["train"])
    recipe = replace(recipe, tokenizer=spec)
    if find_rung(recipe.rung).counts:
        return recipe
    if recipe.minutes is None and recipe.steps is None and "num_train_epochs" not in recipe.train:
        recipe = replace(recipe, minutes=DEFAULT_MINUTES)
    if not recipe.base and not {"max_position_embeddings", "n_positions"} & set(recipe.model):
        recipe = replace(recipe, model={**recipe.model, "max_position_embeddings": CONTEXT})
    return recipe


def _begin(folder: Path, record: dict[str, Any]) -> None:
    """Write the record; checkpoints of an earlier try are kept if they are of the same text, other traces are not."""
    if last_checkpoint(folder) is None:
        for name in (runs.METRICS, runs.SAMPLES):
            (folder / name).unlink(missing_ok=True)
    else:
        before = runs.read_record(folder)
        for key, what in (("corpus", "text"), ("tokenizer", "text"), ("base", "model that it goes on from")):
            if before.get(key, {}).get("fingerprint") != record.get(key, {}).get("fingerprint"):
                raise RunError(f"the {what} has changed since {folder} was begun: choose another folder with --out")
    runs.write_record(folder, record)


def _choose_width(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    if find_rung(recipe.rung).counts or recipe.base or {"hidden_size", "n_embd"} & set(recipe.model):
        return recipe
    target = suggest_parameters(recipe.minutes or DEFAULT_MINUTES)
    width = match_parameters(recipe.rung, tokenizer, target, recipe.model)
    return replace(recipe, model={**recipe.model, "hidden_size": width})


def split_bytes(corpus: Corpus) -> dict[str, int]:
    """UTF-8 bytes of each split."""
    return {
        name: sum(len(text.encode()) for batch in corpus.split(name).iter(1000) for text in batch["text"])
        for name in SPLITS
    }


def _count(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, packed: Packed, folder: Path, hooks: Hooks
) -> tuple[CausalModel, Trained]:
    """Fit a counting rung: one pass over the text."""
    config = make_config(recipe.rung, tokenizer, recipe.model)
    counting = Counting(**recipe.counting)
    if counting.engine == "numpy":
        keep_freed_memory()
    started = time.perf_counter()
    options = {"count": choose_counter(counting, folder / ".counting")} if recipe.counting else {}
    model = find_rung(recipe.rung).model.fit(config, packed.tokens, packed.starts, **options)
    seconds = time.perf_counter() - started
    line = {"step": 0, "tokens": len(packed), "bits_per_byte": hooks.evaluate(model.eval())}
    runs.append_metrics(folder, line)
    return model, Trained(steps=0, tokens=len(packed), seconds=seconds, interrupted=False)


def _learn(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    packed: Packed,
    folder: Path,
    hooks: Hooks,
    base: CausalModel | None = None,
) -> tuple[CausalModel, Trained]:
    """Train a rung by gradients, from `base` or from random weights."""
    model = base or build_model(recipe.rung, make_config(recipe.rung, tokenizer, recipe.model))
    model = model.to(choose_device())
    settings = TrainSettings(
        steps=recipe.steps,
        minutes=recipe.minutes,
        arguments=recipe.train,
        carry_state=recipe.carry_state,
        lora=recipe.lora,
        seed=recipe.seed,
    )
    return model, train(model, tokenizer, packed, folder, settings, hooks)


def _hooks(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, tell: Tell) -> Hooks:
    watched = first_texts(corpus.validation["text"], WATCHED_BYTES)
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
    score = score_documents(model, tokenizer, texts, lambda done: tell(Stage(name="scoring", done=done, total=total)))
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
        runs.write_atomically(path, yaml.safe_dump(marks, sort_keys=False))
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


def _describe(recipe: Recipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "rung": recipe.rung,
        "recipe": asdict(recipe),
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "documents": {name: len(corpus.split(name)) for name in SPLITS},
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
        "trainable_parameters": trained.trainable_parameters,
    }
