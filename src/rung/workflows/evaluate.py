"""Scoring a run that is made: on its own text or on other, with the ruler's switches, or on
standard tasks.
"""

import functools
import importlib.metadata
import importlib.util
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rung import runs
from rung.data.corpus import Corpus, corpus_title, load_corpus
from rung.device import choose_device
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.likelihood import needs_renormalization
from rung.evaluation.score import score_documents
from rung.models import load
from rung.progress import OnProgress, Progress, ignore_progress
from rung.workflows.training_text import check_unseen, find_seen, is_own, read_own_text
from rung.workflows.variants import PLAIN, Judged, Switches, choose_fitting, prepare_switches

logger = logging.getLogger(__name__)


def evaluate_run(
    run: str,
    corpus: str | Sequence[str],
    split: str,
    reading: Mapping[str, str],
    on_progress: OnProgress = ignore_progress,
    switches: Switches = PLAIN,
) -> dict[str, Any]:
    """Score a run on one split of `corpus`, by default its own; other text without splits is scored
    whole.

    A corpus that is the run's own text, by its place or its content, is taken as such: its test
    split is scored. To read another column of it makes it other text. `reading` has what is given
    of `documents`, `column` and `encoding`: how the text is to be read. The switches' scores stand
    beside the plain one, under the switch's name. Raises `RunError` when the corpus is left open
    and the run does not know one, when nothing of it was held out, and for text that was trained
    on.
    """
    model, tokenizer = load(run)
    record = runs.find_record(Path(run))
    recipe = record.get("recipe", {})
    if not (corpus or recipe):
        raise RunError(
            f"{run} was not trained by rung and has no corpus of its own: name one, as in "
            f"`rung eval {shlex.quote(run)} my.txt`"
        )
    reading = {key: value for key, value in reading.items() if value}
    if not corpus and {"column", "encoding"} & set(reading):
        raise RecipeError(
            "a column and an encoding say how to read other text, and none is named: leave them out"
        )
    on_progress(Progress(stage="reading"))
    own = functools.partial(read_own, run, record) if recipe else None
    given: Any = {
        "documents": recipe.get("documents", "paragraphs"),
        **reading,
    }  # held to what there is as it is read
    if corpus and recipe and is_own(corpus, run, record, reading):
        note = f"{corpus_title(corpus)} is the text that {run} was trained on"
        on_progress(Progress(stage="read", note=f"{note}: its {split} split is scored"))
        corpus = ""
    text = (
        load_corpus(corpus, whole=True, **given)
        if corpus
        else read_own(run, record, given["documents"])
    )
    _check_held_out(run, text, split)
    seen = _check_seen(run, switches, text, split) if corpus or switches.mix else {}
    name = record.get("rung", model.config.model_type)
    judged = Judged(run, name, model.to(choose_device()), tokenizer)
    scorers = (
        prepare_switches(switches, judged, choose_fitting(text, split, own)) if switches else {}
    )
    texts = text.split(split)["text"]
    score = score_documents(model, tokenizer, texts, on_progress)
    scored = "whole text" if text.is_unsplit else split
    facts = {
        "run": run,
        "rung": name,
        "corpus": text.name,
        "split": scored,
        **seen,
        **score.as_dict(),
    }
    facts |= {
        "doubt": runs.explain_doubtful_score(record),
        "busyness": runs.describe_busy_machine(record),
    }
    for switch, scorer in scorers.items():
        facts[switch] = scorer(texts, on_progress).as_dict()
    return facts


def _check_held_out(run: str, text: Corpus, split: str) -> None:
    if not len(text.split(split)):
        raise RunError(
            f"{run} was trained on all of {text.name} (held_out is 0), so there is no {split} "
            f"text: name other text, "
            f"as in `rung eval {shlex.quote(run)} other.txt`"
        )


def _check_seen(run: str, switches: Switches, text: Corpus, split: str) -> dict[str, Any]:
    """How much of the text the run was trained on; it and those mixed with it must not have seen
    most of it.

    Raises `RunError` where one has.
    """
    found = {}
    for each in dict.fromkeys([run, *(entry.partition("=")[2] for entry in switches.mix)]):
        record = runs.find_record(Path(each)) if Path(each).is_dir() else {}
        if split != "train" and "recipe" in record and "corpus" in record:
            found[each] = check_unseen(each, record, text, split)
    return {"seen_in_training": found[run]} if found.get(run) is not None else {}


def evaluate_tasks(run: str, tasks: Sequence[str], limit: int | None = None) -> dict[str, Any]:
    """The figures of lm-evaluation-harness for a run on `tasks`, on at most `limit` documents of
    each.

    Of each task it is said how much of its text the run was trained on, where the training text is
    to be had. Raises `RecipeError` where the harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError(
            "--tasks needs lm-evaluation-harness, which is not installed: pip install 'rung[eval]'"
        )
    from rung.evaluation.harness import run_tasks

    model, tokenizer = load(run)
    record = runs.find_record(Path(run))
    figures, texts = run_tasks(model.to(choose_device()), tokenizer, tasks, limit)
    for task, seen in _find_seen_of_tasks(run, record, texts).items():
        figures[task]["seen_in_training"] = seen
    facts = {
        "rung": record.get("rung", model.config.model_type),
        "renormalized": needs_renormalization(model),
    }
    harness = f"lm_eval {importlib.metadata.version('lm_eval')}"
    return {"run": run, **facts, "harness": harness, "limit": limit, "tasks": figures}


def _find_seen_of_tasks(
    run: str, record: Mapping[str, Any], texts: Mapping[str, list[str]]
) -> dict[str, float]:
    """The share of each task's bytes that the run was trained on; of none where its training text
    is not to be had.
    """
    if not {"recipe", "corpus"} <= record.keys():
        return {}
    try:
        return dict(zip(texts, find_seen(texts.values(), read_own_text(run, record)), strict=True))
    except CorpusError:
        return {}


def read_own(run: str, record: dict[str, Any], documents: Any = "") -> Corpus:
    """The corpus that the run was trained on, as it is now.

    Raises `CorpusError` when it cannot be found.
    """
    text = read_own_text(run, record, documents)
    if text.fingerprint != record["corpus"]["fingerprint"]:
        logger.warning("%s, its own text, has changed since %s was trained on it", text.name, run)
    return text
