"""Measure how much of what a run writes is new: `rung.novelty`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rung.api.options import check_options
from rung.api.run import Run, load
from rung.device import avoid_busy_cores
from rung.progress import OnProgress, for_run, ignore_progress
from rung.workflows.novelty import NoveltyOptions, measure_run_novelty


def novelty(
    run: str | Path | Run,
    *,
    settings: Sequence[tuple[float, float]] = (),
    on_progress: OnProgress = ignore_progress,
    **options: Any,
) -> dict[str, Any]:
    """Measure how much of what a run writes is new, beside held-out text that people wrote.

    >>> run = rung.train("bigram", "my.txt")
    >>> found = rung.novelty(run, settings=[(0.8, 0.95), (1, 1)], texts=4, tokens=30)
    >>> len(found["settings"]), sorted(found["crossings"])
    (2, ['temperature', 'top_p'])

    `settings` are pairs of temperature and top-p; ten of them by default. Options are `texts` and
    `tokens`, how many texts of how many tokens each setting writes, and `seed`. The figures are
    kept in the run's record too. Raises a child of `RungError` for a mistake of the user.
    """
    check_options("novelty", options, ["texts", "tokens", "seed"])
    if settings:
        options["settings"] = tuple((float(heat), float(top)) for heat, top in settings)
    avoid_busy_cores()
    opened, told = load(run), for_run("novelty", on_progress)
    return measure_run_novelty(opened.name, NoveltyOptions(**options), told, opened.options)
