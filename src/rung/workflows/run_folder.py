"""The run's folder from its beginning to its end: begin or go on, then save, score and record."""

import math
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung import distributed, runs
from rung.errors import RunError
from rung.files import remove_leftovers
from rung.model_files import CONFIG, read_json
from rung.models import count_parameters
from rung.models.base import CausalModel
from rung.models.ngram.checkpoints import remove_order_checkpoints
from rung.recipe import Recipe, make_recipe
from rung.training.arguments import DEFAULT_ARGUMENTS
from rung.training.checkpoints import find_checkpoints
from rung.training.train import TrainingResult
from rung.workflows.record import describe_training, note_batches
from rung.workflows.training_text import locate_corpus, relocate_paths

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """A model that was fitted, its tokenizer, and what training took.

    `trained` is None for a method that is not trained by the Trainer. Pickled for other processes,
    it has no model.
    """

    model: CausalModel | None
    tokenizer: PreTrainedTokenizerBase
    trained: TrainingResult | None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None}


def check_unused(folder: Path) -> None:
    """Raise `RunError` where a new run would overwrite something in `folder`.

    It is also raised where another process writes there.
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


def open_run(folder: Path, record: Record, fingerprinted: Mapping[str, str]) -> Record:
    """Begin the run of `record` in `folder`, or go on with the one there; return its record.

    The main process calls this. `fingerprinted` maps those keys of the record whose `fingerprint`
    must be the same when a run goes on to what an error calls them. A run that goes on keeps its
    plan; of an earlier try without a checkpoint nothing is kept. Raises `RunError`.
    """
    runs.make_folder(folder)
    remove_leftovers(folder, alone=True)
    if find_checkpoints(folder):
        before = runs.read_record(folder)
        _check_same(folder, before, record, fingerprinted)
        record = {key: before[key] for key in ("plan",) if key in before} | record
        record |= note_batches(folder, before, record)
    else:
        for name in (runs.METRICS, runs.SAMPLES):
            (folder / name).unlink(missing_ok=True)
    runs.write_record(folder, record)
    return record


def _check_same(
    folder: Path, before: Record, record: Record, fingerprinted: Mapping[str, str]
) -> None:
    for key, name in fingerprinted.items():
        if before.get(key, {}).get("fingerprint") != record.get(key, {}).get("fingerprint"):
            raise RunError(
                f"{name} has changed since {folder} was begun: choose another folder with --out"
            )


@distributed.on_main
def close_run(
    folder: Path,
    record: Record,
    fitted: FittedModel,
    score: Callable[[CausalModel, TrainingResult | None], Record],
) -> bool:
    """Save the model, score it and write the record; return whether the run is finished.

    `score` returns what scoring adds to the record. An interrupted run is saved and not scored.
    """
    model, trained = fitted.model, fitted.trained
    assert model is not None
    runs.save_model(folder, model.eval(), fitted.tokenizer)
    record = record | {"parameters": count_parameters(model)}
    if trained is not None:
        record |= {"training": describe_training(trained)} | _compare_with_plan(
            folder, record, trained
        )
    interrupted = trained is not None and trained.interrupted
    if not interrupted:
        record |= score(model, trained)
    runs.write_record(folder, record)
    remove_order_checkpoints(folder / runs.CHECKPOINTS)
    return not interrupted


def _compare_with_plan(folder: Path, record: Record, trained: TrainingResult) -> Record:
    """Note in the plan what the run reached on the validation text, and any prediction's error."""
    reached = {
        line["step"]: line["bits_per_byte"]
        for line in runs.read_metrics(folder)
        if "bits_per_byte" in line
    }.get(trained.kept_step)
    if not reached or "plan" not in record:
        return {}
    expected = record["plan"]["bits_per_byte"]
    error = {"error": expected / reached - 1} if expected else {}
    return {"plan": record["plan"] | {"reached": reached} | error}


def read_begun(folder: Path, global_batch_size: Any = None) -> Recipe:
    """Read the recipe of the run to resume in `folder`.

    `global_batch_size`, if given, replaces the recipe's. Raises `RunError` when there is nothing to
    resume, and when this number of processes cannot share the rows of a step.
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
    if recipe is None:
        raise RunError(f"{folder} is finished: there is nothing to resume")
    check_unfinished(folder)
    places = record.get("places", {})
    page = relocate_paths(recipe, places) | {"corpus": locate_corpus(folder, record)}
    page |= {"tokenizer": relocate_paths(recipe.get("tokenizer", {}), places)}
    begun = make_recipe(
        page if global_batch_size is None else page | {"global_batch_size": global_batch_size}
    )
    _check_batch(begun, recipe.get("global_batch_size"), folder)
    return _keep_defaults(begun, folder)


def _keep_defaults(recipe: Recipe, folder: Path) -> Recipe:
    """Keep the rung's defaults that a run was begun with, where an earlier version chose others.

    Its recipe does not hold them: they stand in the configuration of its checkpoints.
    """
    entry, checkpoints = recipe.entry, find_checkpoints(folder)
    if entry.counts or recipe.base or not checkpoints:
        return recipe
    config: dict[str, Any] = {}
    for checkpoint in checkpoints:
        with suppress(RunError):  # a damaged one; `last_checkpoint` says so
            config = read_json(checkpoint / CONFIG)
            break
    model = {key: config[key] for key in {**entry.defaults, **entry.model} if key in config}
    train = {key: DEFAULT_ARGUMENTS.get(key) for key in (*entry.train, "learning_rate")}
    return replace(recipe, model={**model, **recipe.model}, train={**train, **recipe.train})


def check_unfinished(folder: Path) -> None:
    """Raise `RunError` for a run that is finished."""
    if runs.is_finished(folder):
        raise RunError(f"{folder} is finished: there is nothing to resume")


def _check_batch(recipe: Recipe, before: int | None, folder: Path) -> None:
    """Raise `RunError` where a run cannot go on with its recipe's rows per step."""
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
