"""Check a corpus for test text that stands in the training text: `rung.check_corpus`."""

from pathlib import Path
from typing import Any

from rung.api.options import CorpusName, check_options, name_corpus
from rung.api.run import READING, Run, load
from rung.progress import OnProgress, for_run, ignore_progress
from rung.workflows.corpus_check import find_overlap


def check_corpus(
    corpus: CorpusName = None,
    *,
    run: str | Path | Run = "",
    span: int | None = None,
    on_progress: OnProgress = ignore_progress,
    **options: Any,
) -> dict[str, Any]:
    """Measure how much of a corpus's test split stands in its training split.

    >>> found = rung.check_corpus("my.txt")
    >>> found["shared"] <= found["size"], found["duplicates"]
    (True, [])

    A span counts from `span` words on, 13 by default. With `run` the training text is the run's,
    and `scores` has its scores with all documents and without those that overlap. Options are
    `documents`, `column` and `encoding`: how the text is read. Raises a child of `RungError` for a
    mistake of the user.
    """
    check_options("check_corpus", options, READING)
    named, told = name_corpus(corpus), for_run("check", on_progress)
    if not run:
        return find_overlap(named, least=span, reading=options, on_progress=told)
    opened = load(run)
    return find_overlap(named, opened.name, span, options, told, opened.options)
