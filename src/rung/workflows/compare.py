"""Compare models on one text, document by document: differences from the first, seeds as groups."""

import json
import math
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from rung import runs
from rung.data.corpus import Corpus
from rung.device import choose_device
from rung.errors import RecipeError, RunError
from rung.evaluation.compare import paired_bootstrap, paired_difference
from rung.evaluation.metrics import confidence_interval
from rung.evaluation.score import (
    MeasuredDocuments,
    Score,
    describe_reading,
    measure_documents,
    sum_up,
)
from rung.models import load
from rung.models.load_options import LoadOptions
from rung.progress import OnProgress, for_run
from rung.workflows.evaluate import ScoredText, check_held_out, read_scored_text
from rung.workflows.training_text import check_not_trained_on


@dataclass(frozen=True)
class _MeasuredRun:
    """A run, its record (empty for a model that is no run), and its costs."""

    run: str
    record: Mapping[str, Any]
    seen: float | None  # the share of the text that the run was trained on
    model_type: str
    measured: MeasuredDocuments
    score: Score


def compare_runs(
    names: Sequence[str],
    options: Sequence[LoadOptions],
    scored_text: ScoredText,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Score each run, loaded with its options, on the same documents; compare each with the first.

    Without a corpus the text is the runs' own. Runs whose recipes differ in the seed alone are one
    model: its cost of a document is the mean over them. Before anything is scored, raises
    `RecipeError` for fewer than two names or one that comes twice, and `RunError` where a model
    cannot be loaded, where the runs' own texts differ, where no run has one, where a run was
    trained on the text, or where not all score the ends of documents.
    """
    if len(names) < 2:
        raise RecipeError(
            "two models or more are compared: name their runs, as in "
            "`rung compare runs/my-ngram runs/my-llama3`"
        )
    _check_different(names)
    trained = {name: runs.find_training_record(Path(name)) for name in names}
    if not scored_text.corpus:
        _check_same_text(trained)
    sources = dict(zip(names, options, strict=True))
    _check_models(sources)
    text, split = _choose_text(trained, scored_text, on_progress), scored_text.split
    seen = _check_not_trained_on(trained, text, split)
    texts = text.split(split)["text"]
    measured = [
        _MeasuredRun(
            name,
            runs.find_record(Path(name)),
            seen.get(name),
            *_score(name, how, texts, on_progress),
        )
        for name, how in sources.items()
    ]
    groups = _group_seeds(measured)
    first = measured[0].measured
    return {
        "corpus": text.name,
        "split": "whole text" if text.is_unsplit else split,
        "documents": len(first.costs),
        "bytes": int(first.column("bytes").sum()),
        "models": [_compare(group, groups[0], first.keys) for group in groups],
    }


def _check_different(names: Sequence[str]) -> None:
    """Raise `RecipeError` where two names are those of one run."""
    named: dict[str, str] = {}
    for name in names:
        place = os.path.realpath(name)
        if place in named:
            first = named[place]
            twice = f"{name} is named twice" if first == name else f"{first} and {name} are one run"
            raise RecipeError(f"{twice}: name each run once")
        named[place] = name


def _choose_text(
    records: Mapping[str, dict[str, Any]], scored_text: ScoredText, on_progress: OnProgress
) -> Corpus:
    """Read the text that is named, or else the runs' own."""
    readers = _find_owners(records) or dict([next(iter(records.items()))])
    for name, record in readers.items():
        text, is_own = read_scored_text(name, record, scored_text, for_run(name, on_progress))
        if is_own:
            break
    check_held_out(next(iter(records)), text, scored_text.split)
    return text


def _check_not_trained_on(
    trained: Mapping[str, dict[str, Any]], text: Corpus, split: str
) -> dict[str, float | None]:
    """Return the share of the split that each run was trained on, where its text can be read.

    Raises `RunError` where one was trained on most of it.
    """
    if split == "train":
        return {}
    return {
        name: check_not_trained_on(name, record, text, split)
        for name, record in trained.items()
        if "recipe" in record and "corpus" in record
    }


def _find_owners(records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the runs that have a text of their own."""
    return {name: record for name, record in records.items() if "recipe" in record}


def _check_same_text(records: Mapping[str, dict[str, Any]]) -> None:
    """Raise `RunError` where no run has a text of its own, or where these texts differ."""
    owners = _find_owners(records)
    command = f"`rung compare {shlex.join(records)} other.txt`"
    if not owners:
        raise RunError(
            f"none of {', '.join(records)} was trained by rung, so there is no text of their own: "
            f"name one, as in {command}"
        )
    first, *others = owners.items()
    for name, record in others:
        facts = [each.get("corpus", {}) for each in (first[1], record)]
        if facts[0].get("fingerprint") != facts[1].get("fingerprint"):
            one, two = (f"{each.get('name')} ({each.get('fingerprint')})" for each in facts)
            raise RunError(
                f"{first[0]} holds out text of {one}, {name} of {two}: figures of different text "
                f"do not compare; name one text for all, as in {command}"
            )


def _check_models(sources: Mapping[str, LoadOptions]) -> None:
    """Raise `RunError` where a model cannot be loaded, or not all score the ends of documents.

    Each is loaded for this and let go again, so that memory holds one of them at a time.
    """
    end_scored: dict[bool, str] = {}
    for name, options in sources.items():
        model, tokenizer = load(name, options)
        end_scored.setdefault(describe_reading(model, tokenizer)["end_scored"], name)
    if len(end_scored) > 1:
        raise RunError(
            f"{end_scored[False]} has no end-of-text token, so its score leaves out the ends of "
            f"documents, which {end_scored[True]} is charged for: these scores do not compare; "
            "give its tokenizer an eos_token, or compare it with others that have none"
        )


def _score(
    name: str, options: LoadOptions, texts: Sequence[str], on_progress: OnProgress
) -> tuple[str, MeasuredDocuments, Score]:
    """Return the type of a model, the costs of the texts, and their sum."""
    model, tokenizer = load(name, options)
    model.to(choose_device())
    measured = measure_documents(model, tokenizer, texts, for_run(name, on_progress))
    return model.config.model_type, measured, sum_up(model, tokenizer, measured)


def _group_seeds(measured: Sequence[_MeasuredRun]) -> list[list[_MeasuredRun]]:
    """Group the runs whose recipes differ in the seed alone; a tuned run stands for itself."""
    groups: dict[str, list[_MeasuredRun]] = {}
    for run in measured:
        key = run.run
        if "recipe" in run.record and "tune" not in run.record:
            recipe = {name: value for name, value in run.record["recipe"].items() if name != "seed"}
            facts = [run.record.get("corpus", {}).get("fingerprint"), run.record.get("parameters")]
            key = json.dumps([recipe, *facts], sort_keys=True)
        if _seed(run) in map(_seed, groups.get(key, [])):  # the same recipe, made twice
            key = run.run
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _seed(run: _MeasuredRun) -> Any:
    return run.record.get("recipe", {}).get("seed")


def _mean_nats(group: Sequence[_MeasuredRun]) -> NDArray[Any]:
    """Return the nats of each document, the mean over the seeds."""
    return numpy.mean([run.measured.column("nats") for run in group], axis=0)


def _compare(
    group: Sequence[_MeasuredRun], baseline: Sequence[_MeasuredRun], keys: Sequence[int]
) -> dict[str, Any]:
    """Return the figures of a model, and its difference from the baseline where that is another."""
    nats, sizes = _mean_nats(group), group[0].measured.column("bytes")
    interval = confidence_interval(nats / math.log(2), sizes, keys, least=0.0)
    seeds = [run.score.bits_per_byte for run in group]
    facts = {
        "runs": [run.run for run in group],
        "rung": group[0].record.get("rung", group[0].model_type),
        "bits_per_byte": nats.sum().item() / math.log(2) / int(sizes.sum()),
        "low": interval.low,
        "high": interval.high,
        "interval": interval.how,
        "seeds": [_seed(run) for run in group] if len(group) > 1 else [],
        "seed_bits_per_byte": seeds if len(group) > 1 else [],
        "seed_deviation": statistics.stdev(seeds) if len(group) > 1 else None,
        "renormalized": group[0].score.renormalized,
        "seen_in_training": group[0].seen,
        "doubt": next(filter(None, (_doubt(run) for run in group)), None),
    }
    if group is baseline:
        return facts
    found = paired_bootstrap(nats, _mean_nats(baseline), sizes, keys)
    student = paired_difference(nats, _mean_nats(baseline), sizes, keys)
    return facts | {
        "difference": found.mean,
        "difference_low": found.low,
        "difference_high": found.high,
        "sign_holds": found.sign_holds,
        "resamples": found.resamples,
        "different_documents": found.documents,
        "student_low": student.low,
        "student_high": student.high,
    }


def _doubt(run: _MeasuredRun) -> str | None:
    return runs.explain_doubtful_score(dict(run.record)) if run.record else None
