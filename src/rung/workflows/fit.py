"""Fit a rung to the prepared text: count its n-grams, or train it by gradients."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy
from numpy.typing import NDArray
from transformers import PreTrainedConfig, set_seed

from rung import __version__, distributed, runs
from rung.device import choose_device, retain_freed_memory
from rung.evaluation.score import score_documents
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.models import build_model, make_config
from rung.models.base import CausalModel
from rung.models.ngram.checkpoints import OrderCheckpoints
from rung.models.ngram.counting import CountFunction, TrieLevels
from rung.models.ngram.counting_settings import CountingSettings
from rung.models.ngram.engines import choose_count_function
from rung.models.ngram.windows import IntArray
from rung.models.starts import start_model
from rung.progress import OnProgress, Progress
from rung.recipe import Recipe
from rung.training.callbacks import NO_CALLBACKS, TrainingCallbacks
from rung.training.settings import TrainSettings
from rung.training.train import TrainingResult, train
from rung.workflows.base import load_base
from rung.workflows.prepare import PreparedText, sample_validation
from rung.workflows.record import SAMPLE_TOKENS, find_prompt, limit_sample_seconds
from rung.workflows.run_folder import FittedModel

# The rungs' own fields for dropout.
OWN_DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop"),
    "rnn": ("dropout",),
    "rnn-attention": ("dropout",),
}


def fit(prepared: PreparedText, on_progress: OnProgress) -> FittedModel:
    """Fit the recipe's rung. All processes call this; those beside the main one do not count."""
    if prepared.recipe.entry.counts:
        return _count(prepared, on_progress)
    return _train(prepared, on_progress)


def _train(prepared: PreparedText, on_progress: OnProgress) -> FittedModel:
    """Train a rung by gradients, from another run's weights or from random ones."""
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    set_seed(recipe.seed)
    own = dict.fromkeys(OWN_DROPOUT.get(recipe.rung, ()), recipe.dropout) if recipe.dropout else {}
    model = _build(replace(recipe, model={**own, **recipe.model}), tokenizer)
    if not recipe.base:
        packed = prepared.packed
        start_model(model, recipe.rung, recipe.start, packed.tokens, packed.starts)
    model = model.to(choose_device())
    settings = TrainSettings(
        steps=recipe.steps,
        minutes=recipe.minutes,
        arguments=recipe.train,
        global_batch_size=recipe.global_batch_size,
        dropout=0.0 if own else recipe.dropout,
        carry_state=recipe.carry_state,
        teacher=recipe.teacher,
        lora=recipe.lora,
        seed=recipe.seed,
        began=prepared.began,
    )
    callbacks = _make_callbacks(prepared, on_progress)
    trained = train(model, tokenizer, prepared.packed, prepared.folder, settings, callbacks)
    return FittedModel(model=model, tokenizer=tokenizer, trained=trained)


def _build(recipe: Recipe, tokenizer: Any) -> CausalModel:
    if recipe.base:
        return load_base(recipe)
    return build_model(recipe.rung, make_config(recipe.rung, tokenizer, recipe.model))


@distributed.on_main
def _count(prepared: PreparedText, on_progress: OnProgress) -> FittedModel:
    """Fit a counting rung, and score it on the validation text as training does."""
    started = time.perf_counter()
    model = _fit_counts(prepared, on_progress)
    seconds = time.perf_counter() - started
    tokens = len(prepared.packed)
    line: dict[str, Any] = {"step": 0, "tokens": tokens}
    if prepared.recipe.held_out != 0:
        line["bits_per_byte"] = _make_callbacks(prepared, on_progress).evaluate(model.eval())
    runs.append_metrics(prepared.folder, line)
    trained = TrainingResult(steps=0, tokens=tokens, seconds=seconds, interrupted=False)
    return FittedModel(model=model, tokenizer=prepared.tokenizer, trained=trained)


def _fit_counts(prepared: PreparedText, on_progress: OnProgress) -> CausalModel:
    """Count the packed text; a long count goes on from the orders that an earlier try left."""
    recipe, packed = prepared.recipe, prepared.packed
    config = make_config(recipe.rung, prepared.tokenizer, recipe.model)
    counting = CountingSettings(**recipe.counting)
    if counting.engine == "numpy":
        retain_freed_memory()
    else:
        note = counting.describe(len(packed), config.order)
        on_progress(Progress(stage="noted", note=note))
    on_progress(Progress(stage="counting"))
    model = recipe.entry.model_class
    if recipe.rung != "ngram":
        return model.fit(config, packed.tokens, packed.starts)
    checkpoints = None
    if counting.keeps_checkpoints(len(packed)):
        facts = _describe_count(prepared, counting, config)
        checkpoints = OrderCheckpoints(prepared.folder / runs.CHECKPOINTS, facts)
        if (highest := checkpoints.highest) > 1:
            going_on = f", going on with {highest + 1}" if highest < config.order else ""
            note = f"orders 1 to {highest} are kept{going_on}"
            on_progress(Progress(stage="noted", note=note))
    scratch = counting.scratch_folder(prepared.folder)
    count = _report_orders(choose_count_function(counting, scratch, checkpoints), on_progress)
    return model.fit(config, packed.tokens, packed.starts, count=count)


def _describe_count(
    prepared: PreparedText, counting: CountingSettings, config: PreTrainedConfig
) -> dict[str, Any]:
    """Name the facts that tell the kept orders of this count from those of another."""
    return {
        "rung": __version__,
        "text": prepared.packed_key,
        "tokens": len(prepared.packed),
        "documents": len(prepared.packed.starts),
        "vocab_size": config.vocab_size,
        "order": config.order,
        "engine": counting.engine,
    }


def _report_orders(count: CountFunction, on_progress: OnProgress) -> CountFunction:
    """Wrap `count` so that every order is reported."""

    def count_and_report(
        tokens: IntArray, starts: NDArray[numpy.int64], order: int, vocab_size: int
    ) -> TrieLevels:
        with closing(count(tokens, starts, order, vocab_size)) as levels:
            for number, level in enumerate(levels, start=1):
                note = f"order {number} of {order}: {len(level):,} n-grams"
                on_progress(Progress(stage="counting", note=note))
                yield level

    return count_and_report


def _make_callbacks(prepared: PreparedText, on_progress: OnProgress) -> TrainingCallbacks:
    """Make what training calls. Only the main process has the text that it needs."""
    if prepared.corpus is None:
        return NO_CALLBACKS
    tokenizer, recipe = prepared.tokenizer, prepared.recipe
    prompt, validation = find_prompt(prepared.corpus), sample_validation(prepared.corpus)
    sampling = Sampling(
        max_new_tokens=SAMPLE_TOKENS, seed=recipe.seed, max_time=limit_sample_seconds(recipe)
    )
    size = sum(len(text.encode()) for text in validation)
    return TrainingCallbacks(
        evaluate=lambda model: score_documents(model, tokenizer, validation).bits_per_byte,
        sample=lambda model: prompt + generate(model, tokenizer, prompt, sampling).text,
        on_progress=report_training(on_progress),
        scoring_cost=prepared.corpus.bytes["test"] / max(1, size),
    )


def report_training(
    on_progress: OnProgress, stage: str = "training", unit: str = "bits per byte"
) -> Callable[[Progress], None]:
    """Write training's figures into the note of its progress."""

    def report(progress: Progress) -> None:
        note = f"{progress.tokens_per_second:,.0f} tokens/s"
        if progress.loss is not None:
            note += f", loss {progress.loss:.3f}"
        if progress.bits_per_byte is not None:
            note += f", {progress.bits_per_byte:.3f} {unit}"
        on_progress(replace(progress, stage=stage, note=note))

    return report
