"""Train the rung of a recipe, or fit it by counting: one run, from its text to its scores."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rung import distributed, runs
from rung.data.store import SPLITS
from rung.models.base import CausalModel
from rung.progress import OnProgress, ignore_progress
from rung.recipe import Recipe
from rung.training.clock import now
from rung.training.train import TrainingResult
from rung.workflows.budget import fit_budget
from rung.workflows.fit import fit
from rung.workflows.prepare import MARKS_SHARE, PreparedText, find_sample_stride, prepare
from rung.workflows.record import (
    describe_environment,
    describe_tokenizer,
    limit_sample_seconds,
    score_run,
)
from rung.workflows.run_folder import close_run, open_run
from rung.workflows.training_text import describe_corpus_paths, describe_paths

# The keys of a record whose fingerprints must stay the same when a run goes on.
FINGERPRINTED = {
    "corpus": "the text",
    "tokenizer": "the text",
    "base": "the model that it goes on from",
    "teachers": "a teacher",
}


def execute(
    recipe: Recipe,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
) -> bool:
    """Make the run of `recipe` in `folder`, from its last checkpoint if there is one.

    The recipe's minutes count from `began`, by `training.clock.now`, else from now, and include
    the last score. Returns whether the run was finished: False when it was interrupted, and the
    work so far was saved. Under `torchrun` the processes train together; the main one reads,
    counts, scores and writes. Raises `RungError`; a start that fails leaves nothing in `folder`.
    """
    with runs.lock_folder(folder, together=True), runs.remove_failed_start(folder):
        prepared = prepare(recipe, folder, on_progress, now() if began is None else began)
        planned = fit_budget(prepared, on_progress)
        record = _open(planned)
        fitted = fit(planned, on_progress)
        return close_run(folder, record, fitted, partial(_score, planned, on_progress))


@distributed.on_main
def _open(prepared: PreparedText) -> dict[str, Any]:
    return open_run(prepared.folder, _describe(prepared), FINGERPRINTED)


def _describe(prepared: PreparedText) -> dict[str, Any]:
    """Describe the text, the tokenizer, the base and the plan of the run, for its record."""
    recipe, corpus, packed = prepared.recipe, prepared.corpus, prepared.packed
    assert corpus is not None
    documents: dict[str, int] = {name: len(corpus.split(name)) for name in SPLITS}
    sizes = dict(corpus.bytes)
    if corpus.stream:
        documents["train"] = len(packed.starts)
        sizes |= {"train": packed.state["bytes"], "train stored": corpus.bytes["train"]}
    spec = recipe.tokenizer
    return {
        "rung": recipe.rung,
        "recipe": asdict(recipe),
        "corpus": {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "documents": documents,
            "bytes": sizes,
            "notes": list(corpus.notes),
            **describe_corpus_paths(recipe.corpus, prepared.folder),
        },
        "tokenizer": {
            **describe_tokenizer(prepared.tokenizer, spec.get("kind") or spec["path"]),
            "one_document_in": find_sample_stride(recipe, corpus),
        },
        **describe_environment(recipe.seed),
        **prepared.models,
        "places": describe_paths(base=recipe.base, path=spec.get("path"), teacher=recipe.teacher),
        **({"plan": asdict(prepared.plan)} if prepared.plan else {}),
    }


def _score(
    prepared: PreparedText,
    on_progress: OnProgress,
    model: CausalModel,
    trained: TrainingResult | None,
) -> dict[str, Any]:
    """Score the model, in the share of the recipe's minutes that scoring has."""
    recipe, corpus = prepared.recipe, prepared.corpus
    assert corpus is not None
    assert trained is not None
    return score_run(
        model,
        prepared.tokenizer,
        corpus,
        on_progress,
        limit_sample_seconds(recipe),
        MARKS_SHARE * 60 * recipe.minutes if recipe.minutes else trained.seconds,
    )
