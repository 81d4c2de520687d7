"""Train every rung on one text, or each swap between two rungs: `rung.climb`."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from rung.api.interrupts import name_saved_work
from rung.api.ladder import Ladder
from rung.api.options import (
    CorpusName,
    check_not_given,
    check_options,
    name_corpus,
    name_folder,
    name_pairs,
    name_tokenizer,
)
from rung.api.run import Run
from rung.progress import OnProgress, ignore_progress
from rung.training.clock import now
from rung.workflows.climb import Climb
from rung.workflows.climb import climb as make_ladder
from rung.workflows.climb_swaps import SwapClimb, climb_swaps

SEEDS = 3  # runs of each model between two rungs


def climb(
    corpus: CorpusName = None,
    *,
    out: str | Path | None = None,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
    **settings: Any,
) -> Ladder:
    """Train every rung on one text, with one tokenizer, and write the report that compares them.

    >>> ladder = rung.climb("my.txt", rungs=["bigram", "ngram"])
    >>> len(ladder), ladder.folder
    (2, PosixPath('runs/my'))
    >>> ladder["ngram"].scores["bits_per_byte"] < ladder["bigram"].scores["bits_per_byte"]
    True

    `corpus` is a name (`rung corpora`), `hf:ORG/NAME`, or paths; `python-docs` by default. Settings
    are `minutes` for all rungs together (5 by default), `rungs` (all by default), `tokenizer`,
    `documents`, `column`, `encoding`, `seed`, and `pairs`, a file or folder of minimal pairs that
    the runs are scored on after these minutes; those of `toy-language` are its probes. With
    `between=("gpt2", "llama3")` the models are those that swap one part of the first for one of the
    second: `steps` of each run (800 by default) and `seeds`, the runs of each model (3 by default),
    take the place of `minutes`, `rungs` and `pairs`.

    The runs go to the folder `out`, by default `runs/CORPUS`; those that are finished there stay.
    `on_progress` is called with each `Progress`, which names its run; the minutes count from
    `began` by `time.perf_counter()`, else from the call. Raises a child of `RungError` for a
    mistake of the user, and `Interrupted` after Ctrl-C, when the work so far is saved.
    """
    began = now() if began is None else began
    source = name_corpus(corpus) or "python-docs"
    settings["pairs"] = name_pairs(settings.get("pairs"))
    given = {key: value for key, value in settings.items() if value not in (None, "", ())}
    between = given.pop("between", None)
    idle = ("minutes", "rungs", "pairs") if between else ("steps", "seeds")
    check_not_given(
        "--between has no" if between else "only --between has",
        {f"--{name}": given.get(name) for name in idle},
    )
    text: dict[str, Any] = {
        "corpus": source,
        "tokenizer": name_tokenizer(given.pop("tokenizer", "bpe")),
    }
    folder = Path(out or name_folder(source, *(between or ())))
    text["folder"] = folder
    with name_saved_work(folder, "the same call"):
        if between:
            swaps = _plan_swaps(text | {"between": tuple(between)}, given)
            return Ladder(swaps, [Run(made) for made in climb_swaps(swaps, on_progress)])
        plan = _plan_climb(text, given)
        return Ladder(plan, [Run(made) for made in make_ladder(plan, on_progress, began)])


def _plan_climb(fixed: dict[str, Any], given: dict[str, Any]) -> Climb:
    known = [field.name for field in fields(Climb) if field.name not in fixed]
    check_options("climb", given, [*known, "between", "tokenizer"])
    if "rungs" in given:
        given["rungs"] = _split(given["rungs"])
    return Climb(**fixed, **given)


def _plan_swaps(fixed: dict[str, Any], given: dict[str, Any]) -> SwapClimb:
    known = [field.name for field in fields(SwapClimb) if field.name not in fixed]
    check_options("climb", given, [*known, "seed", "between", "tokenizer"])
    first, count = given.pop("seed", 0), given.pop("seeds", SEEDS)
    return SwapClimb(**fixed, **given, seeds=tuple(range(first, first + count)))


def _split(rungs: str | Iterable[str]) -> tuple[str, ...]:
    """The names of rungs, which may be one text with commas."""
    names = rungs.split(",") if isinstance(rungs, str) else rungs
    return tuple(name.strip() for name in names)
