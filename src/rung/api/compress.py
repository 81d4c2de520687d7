"""Compress a text under a run, and get it back: `rung.compress`, `rung.decompress`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rung.api.run import Run, load
from rung.progress import OnProgress, for_run, ignore_progress
from rung.workflows.compress import compress_file, decompress_file
from rung.workflows.variants import VariantOptions


def compress(
    run: str | Path | Run,
    file: str | Path,
    out: str | Path,
    *,
    mix: Sequence[str] = (),
    cache: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Write `file` to `out` in as many bits as the run's score of it, and return the figures.

    >>> run = rung.train("ngram", "my.txt")
    >>> found = rung.compress(run, "my.txt", "my.rung")
    >>> found["compressed_bytes"] < found["bytes"] / 2
    True

    The file may hold any bytes. `mix` (entries RUNG=RUN) and `cache` are those of `evaluate`,
    fitted on the run's own validation text. Needs `pip install 'rung[compress]'`. Raises a child of
    `RungError` for a mistake of the user.
    """
    opened = load(run)
    variants = VariantOptions(mix=tuple(mix), cache=cache)
    progress = for_run("compress", on_progress)
    return compress_file(opened.name, Path(file), Path(out), variants, progress, opened.options)


def decompress(
    file: str | Path,
    out: str | Path,
    *,
    run: Sequence[str | Path | Run] | str | Path | Run = (),
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Write the text of a compressed `file` to `out`, the same to the byte.

    >>> run = rung.train("ngram", "my.txt")
    >>> _ = rung.compress(run, "my.txt", "my.rung")
    >>> rung.decompress("my.rung", "copy.txt")["bytes"] == len(open("my.txt", "rb").read())
    True

    The file names the run that it was written with; `run` says where that lies now, or with `mix`
    all of them. Code that comes with a model runs only with `trust_remote_code`; the window and the
    type of the weights are in the file. Raises `RunError` for a damaged file and for another model,
    and writes nothing.
    """
    named = [run] if isinstance(run, str | Path | Run) else list(run)
    names = [each.name if isinstance(each, Run) else str(each) for each in named]
    told = for_run("decompress", on_progress)
    return decompress_file(Path(file), Path(out), names, told, trust_remote_code)
