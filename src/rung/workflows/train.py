"""Making what a recipe says: text, tokenizer, model, training, scores, all into one run folder."""

import functools
import math
import shlex
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase, set_seed

from rung import distributed, runs
from rung.data.corpus import Corpus
from rung.data.packing import PackedTokens, pack
from rung.data.store import SPLITS
from rung.data.tokenizer import required_vocab_size
from rung.data.tokenizer_training import suggest_vocab_size
from rung.device import cache_folder, choose_device, leave_busy_cores
from rung.errors import RunError
from rung.evaluation.documents import take_texts
from rung.evaluation.score import score_documents
from rung.files import remove_leftovers
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.ladder import is_counting
from rung.models import build_model, count_parameters, find_hidden_size, make_config
from rung.models.base import CausalModel
from rung.models.ngram.checkpoints import remove_order_checkpoints
from rung.models.ngram.counting_settings import CountingSettings
from rung.progress import OnProgress, Progress, ignore_progress
from rung.recipe import Recipe, make_recipe
from rung.training.arguments import make_training_arguments
from rung.training.callbacks import NO_CALLBACKS, TrainingCallbacks
from rung.training.checkpoints import find_checkpoints
from rung.training.clock import now
from rung.training.global_batch import find_global_batch_size
from rung.training.settings import TrainSettings
from rung.training.trackers import check_trackers
from rung.training.train import Trained, train
from rung.workflows.base import describe_base, load_base
from rung.workflows.budget import Plan, suggest_parameters, turn_dial
from rung.workflows.counting import fit_counts
from rung.workflows.prepare import (
    pack_train,
    packed_key,
    prepare_tokenizer,
    read_corpus,
    sample_stride,
    skips_empty_lines,
)
from rung.workflows.record import (
    SAMPLE_TOKENS,
    describe_surroundings,
    describe_tokenizer,
    describe_training,
    find_marks,
    find_prompt,
    judge,
    note_batches,
)
from rung.workflows.training_text import describe_place, describe_places, find_again, find_sources

DEFAULT_MINUTES = 5.0
# Fields of the rungs that have dropout of their own.
OWN_DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop"),
    "rnn": ("dropout",),
    "rnn-attention": ("dropout",),
}
# Tokens a model is trained on at a time in five minutes or less; twice as many in four times as
# long.
CONTEXT = 256
LONGEST_CONTEXT = 1024
MARKING = 0.1  # of the minutes, at the most, is for the compressors' marks
SAMPLING = 0.02  # of the minutes, at the most, is for a sample
WATCHED_BYTES = 32_000  # of the validation text, read at every evaluation in training


def execute(
    recipe: Recipe,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
) -> bool:
    """Make the run that `recipe` describes in `folder`, from the last checkpoint there if there is
    one.

    The recipe's minutes hold all of it, from `began` by `train.clock.now`, else from now, to the
    last score. Returns whether it was finished: False when it was interrupted, the work so far
    saved. Under `torchrun` the processes train together; reading, counting, scoring and writing is
    done once, by the main one. Raises `RungError` for what the user can mend, a `folder` that
    another process writes into too; a start that fails leaves nothing.
    """
    with runs.lock_folder(folder, together=True), runs.remove_failed_start(folder):
        return _execute(recipe, folder, on_progress, now() if began is None else began)


def _execute(recipe: Recipe, folder: Path, on_progress: OnProgress, began: float) -> bool:
    ready = _make_ready(recipe, folder, on_progress, began)
    packed = distributed.raise_together(ready.open_packed)()
    counts = is_counting(recipe.rung)
    if not counts:
        leave_busy_cores()
    chosen = ready if counts else _choose_size(ready, packed, folder, on_progress)
    begun = _begin(chosen, packed, folder)
    if counts:
        return _count_and_finish(begun, packed, folder, on_progress)
    set_seed(recipe.seed)
    made = _learn(begun, packed, folder, on_progress)
    return _finish(begun, folder, made, on_progress)


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """All that is decided before a model is made, and the record of it. Other processes get it
    without the text.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    key: str  # that the packed text is kept under
    record: dict[str, Any]
    corpus: Corpus | None = field(repr=False)
    began: float  # when its minutes began to count, by the main process's clock
    plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "corpus": None}

    def open_packed(self) -> PackedTokens:
        """The packed text, mapped into memory: a process reads what it trains on, and no more."""
        folder = cache_folder() / "packed"
        return pack(
            functools.partial(_not_here, folder),
            key=self.key,
            vocab_size=required_vocab_size(self.tokenizer),
            folder=folder,
        )


def _not_here(folder: Path, state: Any) -> NoReturn:
    raise RunError(
        f"process {distributed.rank()} finds no text in {folder}: RUNG_CACHE must be one folder "
        f"for all machines"
    )


def check_start(recipe: Recipe, folder: Path) -> None:
    """Raise `RungError` for what can be refused before a text is read: the model, trackers, memory,
    the Trainer's arguments, and a batch that the processes cannot share out.
    """
    if not recipe.base:
        make_config(recipe.rung, None, recipe.model)
    check_trackers(recipe.train)
    CountingSettings(**recipe.counting).check_memory()
    if not is_counting(recipe.rung):
        settings = TrainSettings(
            arguments=recipe.train, global_batch_size=recipe.global_batch_size, lora=recipe.lora
        )
        make_training_arguments(settings, folder, 1)


@distributed.on_main
def _make_ready(recipe: Recipe, folder: Path, on_progress: OnProgress, began: float) -> _Ready:
    """Read the text, choose what the recipe leaves open of it, and pack it."""
    check_start(recipe, folder)
    base = load_base(recipe) if recipe.base else None
    runs.make_folder(folder)
    remove_leftovers(folder, alone=True)
    on_progress(Progress(stage="reading"))
    corpus = read_corpus(asdict(recipe))
    on_progress(Progress(stage="read", note=corpus.describe()))
    recipe = complete(recipe, corpus)
    tokenizer = prepare_tokenizer(recipe, corpus)
    if base is None:
        make_config(recipe.rung, tokenizer, recipe.model)  # refuses what is not its tokenizer's
    skip_empty = skips_empty_lines(recipe)
    pack_train(corpus, tokenizer, on_progress, skip_empty=skip_empty)
    if recipe.minutes and corpus.bytes["test"]:
        find_marks(
            corpus, on_progress, MARKING * 60 * recipe.minutes
        )  # before training: what they take is then known
    record = describe_base(recipe.base, base) if base else {}
    key = packed_key(corpus, tokenizer, skip_empty=skip_empty)
    return _Ready(
        recipe=recipe, tokenizer=tokenizer, key=key, record=record, corpus=corpus, began=began
    )


def _choose_size(
    ready: _Ready, packed: PackedTokens, folder: Path, on_progress: OnProgress
) -> _Ready:
    """With the size that the recipe leaves open; all processes measure it together."""
    on_progress(Progress(stage="measuring"))
    watched = read_watched(ready.corpus) if ready.corpus else ()
    recipe, plan = turn_dial(ready.recipe, ready.tokenizer, packed, folder, watched, ready.began)
    if plan:
        on_progress(Progress(stage="planned", note=plan.describe()))
    return replace(ready, recipe=choose_width(recipe, ready.tokenizer), plan=plan)


@distributed.on_main
def _finish(
    ready: _Ready, folder: Path, made: tuple[CausalModel, Trained], on_progress: OnProgress
) -> bool:
    """Save and score what was made; an interrupted run is saved, no more."""
    model, trained = made
    runs.save_model(folder, model, ready.tokenizer)
    record = ready.record | {
        "parameters": count_parameters(model),
        "training": describe_training(trained),
    }
    read = {
        line["step"]: line["bits_per_byte"]
        for line in runs.read_metrics(folder)
        if "bits_per_byte" in line
    }
    reached = read.get(trained.kept_step)
    if reached and "plan" in record:
        record["plan"] |= {
            "reached": reached,
            "error": record["plan"]["bits_per_byte"] / reached - 1,
        }
    if not trained.interrupted:
        assert ready.corpus is not None
        record |= judge(
            model.eval(),
            ready.tokenizer,
            ready.corpus,
            on_progress,
            _find_max_time(ready.recipe),
            MARKING * 60 * ready.recipe.minutes if ready.recipe.minutes else trained.seconds,
        )
    runs.write_record(folder, record)
    remove_order_checkpoints(folder / runs.CHECKPOINTS)
    return not trained.interrupted


def read_begun(folder: Path, global_batch_size: Any = None) -> Recipe:
    """The recipe of the run that was begun in `folder`, from here on with `global_batch_size` rows
    a step, if given.

    Raises `RunError` when there is nothing to resume, or so many processes as there are now cannot
    share the rows.
    """
    record = runs.read_record(folder)
    recipe = record.get("recipe")
    if "tune" in record and not runs.is_finished(folder):
        raise RunError(
            f"{folder} is being tuned: go on with `rung tune --out {shlex.quote(str(folder))} "
            f"--resume`"
        )
    if recipe is None and "failed" in record:
        raise RunError(
            f"{folder} failed before there was anything to resume ({record['failed']}): leave out "
            f"--resume"
        )
    if runs.is_finished(folder) or recipe is None:
        raise RunError(f"{folder} is finished: there is nothing to resume")
    places = record.get("places", {})
    page = find_again(recipe, places) | {"corpus": find_sources(folder, record)}
    page |= {"tokenizer": find_again(recipe.get("tokenizer", {}), places)}
    begun = make_recipe(
        page if global_batch_size is None else page | {"global_batch_size": global_batch_size}
    )
    _check_batch(begun, recipe.get("global_batch_size"), folder)
    return begun


def _check_batch(recipe: Recipe, before: int | None, folder: Path) -> None:
    """Raise `RunError`, with what to do, where a run cannot go on with the rows a step that its
    recipe has.
    """
    rows, processes = recipe.global_batch_size, distributed.world_size()
    if recipe.carry_state and rows != before:
        raise RunError(
            f"global_batch_size is {rows}, but {folder} keeps the states of {before} streams: "
            f"leave it out"
        )
    if not rows or rows % processes == 0:
        return
    again = f"{distributed.launch_command()} train --out {shlex.quote(str(folder))} --resume"
    ways = f"go on with `{again} --set global_batch_size={math.ceil(rows / processes) * processes}`"
    if recipe.carry_state:
        ways = "go on with a number of processes that divides it"
    raise RunError(
        f"{folder} reads {rows} rows a step, which {processes} processes cannot share out evenly: "
        f"{ways}"
    )


def check_unused(folder: Path) -> None:
    """Raise `RunError` when something in `folder` would be lost, or another process is at work
    there.
    """
    if folder.is_dir():
        runs.check_unlocked(folder)
        remove_leftovers(folder, alone=True)
        if runs.holds_only_failure(folder):
            return
        if runs.list_contents(folder):
            raise RunError(
                f"{folder} is not empty: go on with --resume, or choose another folder with --out"
            )
    elif folder.exists():
        raise RunError(f"{folder} is a file, and a run is a folder: choose another with --out")


def complete(recipe: Recipe, corpus: Corpus) -> Recipe:
    """The recipe with what it leaves open chosen for this corpus."""
    spec = dict(recipe.tokenizer)
    if spec.get("kind") == "bpe" and spec.get("vocab_size") is None:
        spec["vocab_size"] = suggest_vocab_size(corpus.bytes["train"])
    recipe = replace(recipe, tokenizer=spec)
    if is_counting(recipe.rung):
        return recipe
    if recipe.minutes is None and recipe.steps is None and "num_train_epochs" not in recipe.train:
        recipe = replace(recipe, minutes=DEFAULT_MINUTES)
    if not recipe.base and not {"max_position_embeddings", "n_positions"} & set(recipe.model):
        recipe = replace(
            recipe, model={**recipe.model, "max_position_embeddings": _choose_context(recipe)}
        )
    return replace(
        recipe, global_batch_size=recipe.global_batch_size or find_global_batch_size(recipe.train)
    )


def _choose_context(recipe: Recipe) -> int:
    times = max(1.0, (recipe.minutes or DEFAULT_MINUTES) / DEFAULT_MINUTES)
    return min(LONGEST_CONTEXT, CONTEXT * 2 ** int(math.log(times, 4)))


@distributed.on_main
def _begin(ready: _Ready, packed: PackedTokens, folder: Path) -> _Ready:
    """Write the record; checkpoints of an earlier try are kept if they are of the same text, other
    traces are not.

    What is gone on with keeps the plan that it was begun with.
    """
    corpus = ready.corpus
    assert corpus is not None
    record = _describe(ready.recipe, corpus, ready.tokenizer) | ready.record
    record["corpus"] |= describe_place(ready.recipe.corpus, folder)
    record["places"] = describe_places(
        base=ready.recipe.base, path=ready.recipe.tokenizer.get("path")
    )
    if ready.plan:
        record["plan"] = asdict(ready.plan)
    if corpus.stream:
        record["corpus"]["documents"]["train"] = len(packed.starts)
        record["corpus"]["bytes"] |= {
            "train": packed.state["bytes"],
            "train stored": corpus.bytes["train"],
        }
    if not find_checkpoints(folder):
        for name in (runs.METRICS, runs.SAMPLES):
            (folder / name).unlink(missing_ok=True)
    else:
        before = runs.read_record(folder)
        for key, what in (
            ("corpus", "text"),
            ("tokenizer", "text"),
            ("base", "model that it goes on from"),
        ):
            if before.get(key, {}).get("fingerprint") != record.get(key, {}).get("fingerprint"):
                raise RunError(
                    f"the {what} has changed since {folder} was begun: choose another folder with "
                    f"--out"
                )
        record = {"plan": before["plan"]} | record if "plan" in before else record
        record |= note_batches(folder, before, ready.recipe.global_batch_size)
    runs.write_record(folder, record)
    return replace(ready, record=record)


def choose_width(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    """The width for what is not timed, or has no law: as if it had the minutes that a run has by
    default.
    """
    if is_counting(recipe.rung) or recipe.base or {"hidden_size", "n_embd"} & set(recipe.model):
        return recipe
    target = suggest_parameters(recipe.minutes or DEFAULT_MINUTES)
    width = find_hidden_size(recipe.rung, tokenizer, target, recipe.model)
    return replace(recipe, model={**recipe.model, "hidden_size": width})


@distributed.on_main
def _count_and_finish(
    ready: _Ready, packed: PackedTokens, folder: Path, on_progress: OnProgress
) -> bool:
    return _finish(ready, folder, _count(ready, packed, folder, on_progress), on_progress)


def _count(
    ready: _Ready, packed: PackedTokens, folder: Path, on_progress: OnProgress
) -> tuple[CausalModel, Trained]:
    """Fit a counting rung, and look at it as at one that is trained."""
    started = time.perf_counter()
    model = fit_counts(ready.recipe, ready.tokenizer, packed, ready.key, folder, on_progress)
    seconds = time.perf_counter() - started
    line: dict[str, Any] = {"step": 0, "tokens": len(packed)}
    if ready.recipe.held_out != 0:
        line["bits_per_byte"] = _make_callbacks(ready, on_progress).evaluate(model.eval())
    runs.append_metrics(folder, line)
    return model, Trained(steps=0, tokens=len(packed), seconds=seconds, interrupted=False)


def _learn(
    ready: _Ready, packed: PackedTokens, folder: Path, on_progress: OnProgress
) -> tuple[CausalModel, Trained]:
    """Train a rung by gradients, from another run's weights or from random ones."""
    recipe = ready.recipe
    own = dict.fromkeys(OWN_DROPOUT.get(recipe.rung, ()), recipe.dropout) if recipe.dropout else {}
    made = replace(recipe, model={**own, **recipe.model})
    config = None if recipe.base else make_config(recipe.rung, ready.tokenizer, made.model)
    model = (build_model(recipe.rung, config) if config else load_base(made)).to(choose_device())
    settings = TrainSettings(
        steps=recipe.steps,
        minutes=recipe.minutes,
        arguments=recipe.train,
        global_batch_size=recipe.global_batch_size,
        dropout=0.0 if own else recipe.dropout,
        carry_state=recipe.carry_state,
        lora=recipe.lora,
        seed=recipe.seed,
        began=ready.began,
    )
    return model, train(
        model, ready.tokenizer, packed, folder, settings, _make_callbacks(ready, on_progress)
    )


def _make_callbacks(ready: _Ready, on_progress: OnProgress) -> TrainingCallbacks:
    """What training calls, on the main process: it has the text."""
    if ready.corpus is None:
        return NO_CALLBACKS
    tokenizer = ready.tokenizer
    prompt, watched = find_prompt(ready.corpus), read_watched(ready.corpus)

    def show(progress: Progress) -> None:
        note = f"{progress.tokens_per_second:,.0f} tokens/s"
        if progress.loss is not None:
            note += f", loss {progress.loss:.3f}"
        if progress.bits_per_byte is not None:
            note += f", {progress.bits_per_byte:.3f} bits per byte"
        on_progress(replace(progress, note=note))

    sampling = Sampling(
        max_new_tokens=SAMPLE_TOKENS, seed=ready.recipe.seed, max_time=_find_max_time(ready.recipe)
    )
    return TrainingCallbacks(
        evaluate=lambda model: score_documents(model, tokenizer, watched).bits_per_byte,
        sample=lambda model: prompt + generate(model, tokenizer, prompt, sampling).text,
        on_progress=show,
        scoring_cost=ready.corpus.bytes["test"]
        / max(1, sum(len(text.encode()) for text in watched)),
    )


def _find_max_time(recipe: Recipe) -> float | None:
    """Seconds that a sample may take; without minutes as many as it needs."""
    return SAMPLING * 60 * recipe.minutes if recipe.minutes else None


def read_watched(corpus: Corpus) -> list[str]:
    """The validation text that training watches."""
    return take_texts(corpus.validation["text"], WATCHED_BYTES)


def _describe(recipe: Recipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "rung": recipe.rung,
        "recipe": asdict(recipe),
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "documents": {name: len(corpus.split(name)) for name in SPLITS},
            "bytes": dict(corpus.bytes),
            "notes": list(corpus.notes),
        },
        "tokenizer": {
            **describe_tokenizer(
                tokenizer, recipe.tokenizer.get("kind") or recipe.tokenizer["path"]
            ),
            "one_document_in": sample_stride(recipe, corpus),
        },
        **describe_surroundings(recipe.seed),
    }
