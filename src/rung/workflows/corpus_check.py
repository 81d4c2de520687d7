"""Check a corpus: how much of its test split stands in the training split, and what that is worth.

A climb looks at the lines only, which takes a pass over the text. The whole check finds spans of
any place in a line, copies, and documents that are nearly equal.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rung import runs
from rung.data.corpus import Corpus, check_documents, load_corpus
from rung.device import choose_device
from rung.errors import CorpusError, RecipeError
from rung.evaluation.near_duplicates import can_find_near_duplicates, find_near_duplicates
from rung.evaluation.overlap import (
    LEAST_SPANS,
    Overlap,
    SpanIndex,
    Unit,
    choose_unit,
    find_duplicates,
    measure_overlap,
    split_units,
)
from rung.evaluation.score import measure_documents, sum_up
from rung.files import cache_folder, make_once, read_cached_value, write_value
from rung.models import load
from rung.models.load_options import AS_STORED, LoadOptions
from rung.progress import OnProgress, Progress, ignore_progress
from rung.workflows.evaluate import ScoredText, read_current_text, read_scored_text
from rung.workflows.training_text import measure_seen

# Shorter lines, such as `return None`, stand in any two texts of a kind.
LEAST_LINE_WORDS = 5
# Copied text costs a model next to nothing, so that it can lower a score by its share of the test
# text. From about this share on that is more than the 95% interval of a score is wide on either
# side (docs/results/climb-python-docs.txt).
MAX_COPIED_SHARE = 0.05


def warn_of_copies(corpus: Corpus, sources: str | Sequence[str]) -> str | None:
    """Return one line where so much of the test split is copied that its scores suffer, or None.

    Lines are compared, as in `measure_seen`; the figure is kept in the cache.
    """
    if not corpus.bytes["test"] or corpus.is_unsplit:
        return None
    kept = cache_folder() / "copied" / corpus.fingerprint
    with make_once(kept) as beside:
        if beside:
            write_value(beside, measure_seen([corpus.test["text"]], corpus, LEAST_LINE_WORDS))
    (copied,) = read_cached_value(kept)
    if copied < MAX_COPIED_SHARE:
        return None
    named = shlex.join([sources] if isinstance(sources, str) else sources)
    return (
        f"{copied:.0%} of the test text stands in the training text too, line by line, and lowers "
        f"every score: `rung corpora check {named}` shows where"
    )


def find_overlap(
    corpus: str | Sequence[str],
    run: str = "",
    least: int | None = None,
    reading: Mapping[str, str] | None = None,
    on_progress: OnProgress = ignore_progress,
    options: LoadOptions = AS_STORED,
) -> dict[str, Any]:
    """Measure how much of the test split of `corpus` stands in its training split.

    With a run, the training text is the run's own, and the run is scored with and without the
    documents that overlap; its own test split is checked where no corpus is named. Spans count from
    `least` words on. `reading` is that of `ScoredText`. Raises `CorpusError` where there is
    nothing to compare, `RecipeError` where `pydivsufsort` is missing.
    """
    if least is not None and least < 1:
        raise RecipeError(f"--span is {least}: it must be 1 or more")
    record = runs.find_training_record(Path(run)) if run else {}
    test, train = _read_texts(corpus, run, record, reading or {}, on_progress)
    texts = list(test.test["text"])
    for corpus_of, split in ((test, "test"), (train, "train")):
        if not corpus_of.bytes[split]:
            raise CorpusError(
                f"{corpus_of.name} has no {split} text, so there is nothing to compare: name other "
                "text"
            )
    unit = choose_unit(texts)
    overlap = _measure(texts, train, unit, least or LEAST_SPANS[unit], on_progress)
    facts: dict[str, Any] = {
        "corpus": test.name,
        "train": _describe_split(train, "train"),
        "test": _describe_split(test, "test"),
        "train_is_beginning": train.stream is not None,
        **overlap.as_dict(),
    }
    if run:
        facts |= {"run": run, "scores": _score(run, options, texts, overlap, on_progress)}
    return facts


def _read_texts(
    corpus: str | Sequence[str],
    run: str,
    record: dict[str, Any],
    reading: Mapping[str, str],
    on_progress: OnProgress,
) -> tuple[Corpus, Corpus]:
    """Read the corpus with the test text, and that with the training text."""
    if run and (record.get("recipe") or not corpus):
        test, is_own = read_scored_text(
            run, record, ScoredText(corpus, reading=reading), on_progress
        )
        return test, test if is_own else read_current_text(run, record)
    on_progress(Progress(stage="reading"))
    given: Any = {key: value for key, value in reading.items() if value}
    corpus = corpus or "python-docs"
    if "documents" in given:
        check_documents(corpus, given["documents"])
    text = load_corpus(corpus, **given)
    return text, text


def _measure(
    texts: list[str], train: Corpus, unit: Unit, least: int, on_progress: OnProgress
) -> Overlap:
    on_progress(Progress(stage="comparing", note="copies"))
    duplicates, near = find_duplicates(texts, train.sample_train(1)), None
    if can_find_near_duplicates():
        on_progress(Progress(stage="comparing", note="near duplicates"))
        near = find_near_duplicates(
            (split_units(text, unit) for text in texts), _split_train(train, unit)
        )
    on_progress(Progress(stage="comparing", note="spans"))
    index = SpanIndex(train.sample_train(1), unit)
    return measure_overlap(texts, index, least, duplicates, near)


def _split_train(train: Corpus, unit: Unit) -> Iterator[list[str]]:
    return (split_units(text, unit) for text in train.sample_train(1))


def _describe_split(corpus: Corpus, split: str) -> dict[str, Any]:
    return {
        "corpus": corpus.name,
        "documents": len(corpus.split(split)),
        "bytes": corpus.bytes[split],
    }


def _score(
    run: str, options: LoadOptions, texts: list[str], overlap: Overlap, on_progress: OnProgress
) -> dict[str, dict[str, Any] | None]:
    """Score the run on all documents, and on those that do not overlap.

    The second is None where all overlap.
    """
    model, tokenizer = load(run, options)
    model = model.to(choose_device())
    measured = measure_documents(model, tokenizer, texts, on_progress)
    removed = {number - 1 for number in overlap.overlapping}
    clean = measured.select(set(range(len(texts))) - removed)
    return {
        "all": sum_up(model, tokenizer, measured).as_dict(),
        "without": sum_up(model, tokenizer, clean).as_dict() if clean.costs else None,
    }
