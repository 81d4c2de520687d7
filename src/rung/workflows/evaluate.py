"""Score a run: on its own text or other text, with variants, or on standard benchmarks."""

import functools
import importlib.metadata
import importlib.util
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung import runs
from rung.data.corpus import Corpus, check_documents, corpus_title, load_corpus
from rung.device import choose_device
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.likelihood import needs_renormalization
from rung.evaluation.score import measure_documents, sum_up
from rung.models import load
from rung.models.load_options import AS_STORED, LoadOptions
from rung.progress import OnProgress, Progress, ignore_progress
from rung.workflows.coding_model import CodingModel, prove_score
from rung.workflows.training_text import (
    check_not_trained_on,
    is_training_text,
    measure_seen,
    read_training_text,
)
from rung.workflows.variants import (
    NO_VARIANTS,
    ScoredRun,
    VariantOptions,
    choose_fitting_text,
    load_partner,
    prepare_variants,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredText:
    """The text that models are scored on: one split of a corpus, or of the runs' own.

    Other text without splits is scored whole. A corpus that is a run's own text, by its place or
    its content, is taken as such: its `split` is scored. `reading` has what is given of
    `documents`, `column` and `encoding`: how the text is to be read; another column makes it other
    text.
    """

    corpus: str | Sequence[str] = ""
    split: str = "test"
    reading: Mapping[str, str] = field(default_factory=dict)


OWN_TEXT = ScoredText()


def evaluate_run(
    run: str,
    scored_text: ScoredText = OWN_TEXT,
    on_progress: OnProgress = ignore_progress,
    variants: VariantOptions = NO_VARIANTS,
    options: LoadOptions = AS_STORED,
) -> dict[str, Any]:
    """Score a run on held-out text, by default its own.

    The scores of the variants stand beside the plain one, under the variant's name. Raises
    `RunError` when the corpus is left open and the run does not know one, when nothing of it was
    held out, and for text that was trained on.
    """
    model, tokenizer = load(run, options)
    record, split = runs.find_training_record(Path(run)), scored_text.split
    text, is_own = read_scored_text(run, record, scored_text, on_progress)
    check_held_out(run, text, split)
    seen = _check_seen(run, variants, text, split) if variants.mix or not is_own else {}
    name = record.get("rung", model.config.model_type)
    scored = ScoredRun(run, name, model.to(choose_device()), tokenizer)
    own = functools.partial(read_current_text, run, record) if "recipe" in record else None
    scorers = {}
    if variants:
        scorers = prepare_variants(variants, scored, choose_fitting_text(text, split, own))
    texts = text.split(split)["text"]
    measured = measure_documents(model, tokenizer, texts, on_progress)
    facts = {
        "run": run,
        "rung": name,
        "corpus": text.name,
        "split": "whole text" if text.is_unsplit else split,
        **seen,
        **sum_up(model, tokenizer, measured).as_dict(),
        "doubt": runs.explain_doubtful_score(record),
        "busyness": runs.describe_busy_machine(record),
    }
    for variant, scorer in scorers.items():
        facts[variant] = scorer(texts, on_progress).as_dict()
    if variants.prove:
        _prove(scored, variants, list(texts), facts, on_progress)
    return facts | ({"per_document": measured.as_rows()} if variants.per_document else {})


def _prove(
    scored: ScoredRun,
    variants: VariantOptions,
    texts: Sequence[str],
    facts: dict[str, Any],
    on_progress: OnProgress,
) -> None:
    """Code and decode the texts, and add the size to the score and to that of each variant."""
    models = {scored.run: scored.model.cpu()}
    codings = [(facts, CodingModel(models, scored.tokenizer))]
    if variants.mix:
        partners = dict(load_partner(entry, scored) for entry in variants.mix)
        weights = {"weights": list(facts["mix"]["weights"].values())}
        codings.append((facts["mix"], CodingModel(models | partners, scored.tokenizer, weights)))
    if variants.cache:
        fitted = {name: facts["cache"][name] for name in ("weight", "sharpness")}
        codings.append((facts["cache"], CodingModel(models, scored.tokenizer, fitted)))
    for score, coding in codings:
        score["proof"] = prove_score(coding, texts, score["nats"], on_progress)


def read_scored_text(
    run: str,
    record: dict[str, Any],
    scored_text: ScoredText,
    on_progress: OnProgress,
) -> tuple[Corpus, bool]:
    """Read the corpus, by default the run's own, and return it with whether it is the run's own."""
    recipe, corpus = record.get("recipe", {}), scored_text.corpus
    if not (corpus or recipe):
        raise RunError(
            f"{run} was not trained by rung and has no corpus of its own: name one, as in "
            f"`rung eval {shlex.quote(run)} my.txt`"
        )
    reading = {key: value for key, value in scored_text.reading.items() if value}
    if not corpus and {"column", "encoding"} & set(reading):
        raise RecipeError(
            "a column and an encoding say how to read other text, and none is named: leave them out"
        )
    if corpus and "documents" in reading:
        check_documents(corpus, reading["documents"])
    on_progress(Progress(stage="reading"))
    given: Any = {"documents": recipe.get("documents", "paragraphs"), **reading}
    if corpus and recipe and is_training_text(corpus, run, record, reading):
        note = f"{corpus_title(corpus)} is the text that {run} was trained on"
        on_progress(Progress(stage="read", note=f"{note}: its {scored_text.split} split is scored"))
        corpus = ""
    if corpus:
        return load_corpus(corpus, whole=True, **given), False
    return read_current_text(run, record, given["documents"]), True


def check_held_out(run: str, text: Corpus, split: str) -> None:
    """Raise `RunError` where the split is empty: the run was trained on all of its text."""
    if not len(text.split(split)):
        raise RunError(
            f"{run} was trained on all of {text.name} (held_out is 0), so there is no {split} "
            f"text: name other text, "
            f"as in `rung eval {shlex.quote(run)} other.txt`"
        )


def _check_seen(run: str, variants: VariantOptions, text: Corpus, split: str) -> dict[str, Any]:
    """Measure how much of the text the run, and those mixed with it, were trained on.

    Raises `RunError` where one was trained on most of it.
    """
    found = {}
    for each in dict.fromkeys([run, *(entry.partition("=")[2] for entry in variants.mix)]):
        record = runs.find_training_record(Path(each)) if Path(each).is_dir() else {}
        if split != "train" and "recipe" in record and "corpus" in record:
            found[each] = check_not_trained_on(each, record, text, split)
    return {"seen_in_training": found[run]} if found.get(run) is not None else {}


def evaluate_tasks(
    run: str,
    tasks: Sequence[str],
    limit: int | None = None,
    options: LoadOptions = AS_STORED,
) -> dict[str, Any]:
    """Run lm-evaluation-harness on `tasks`, on at most `limit` documents of each.

    Each task is given the share of its text that the run was trained on, where the training text
    can be read. Raises `RecipeError` where the harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError(
            "--tasks needs lm-evaluation-harness, which is not installed: pip install 'rung[eval]'"
        )
    from rung.evaluation.harness import run_tasks

    model, tokenizer = load(run, options)
    record = runs.find_training_record(Path(run))
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
    """Return the share of each task's bytes that the run was trained on.

    It is empty where the training text cannot be read.
    """
    if not {"recipe", "corpus"} <= record.keys():
        return {}
    try:
        seen = measure_seen(texts.values(), read_training_text(run, record))
    except CorpusError:
        return {}
    return dict(zip(texts, seen, strict=True))


def read_current_text(run: str, record: dict[str, Any], documents: Any = "") -> Corpus:
    """Read the corpus that the run was trained on, and warn where it has changed since.

    Raises `CorpusError` when it cannot be found.
    """
    text = read_training_text(run, record, documents)
    is_as_trained = documents in ("", record["recipe"].get("documents", "paragraphs"))
    if is_as_trained and text.fingerprint != record["corpus"]["fingerprint"]:
        logger.warning("%s, its own text, has changed since %s was trained on it", text.name, run)
    return text
