"""Settings of counting: the engine, its memory, and the folder of its files."""

import hashlib
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from rung.errors import RecipeError, did_you_mean

ENGINES = {
    "numpy": "in memory, the fastest while the text fits",
    "duckdb": "on this machine, on disk where memory ends",
    "spark": "on a cluster, or on this machine where no cluster is set up",
}
PACKAGES = {"duckdb": ("duckdb", "scale"), "spark": ("pyspark", "spark")}  # module, extra
DEFAULT_MEMORY = "2GB"
MB = 10**6
# Bytes that an engine takes beside the limit it is given: DuckDB's files and the arrays of a part;
# Java itself.
OVERHEAD = {"duckdb": 150 * MB, "spark": 750 * MB}
BUILD_BYTES_PER_NGRAM = 64  # while the model is built
MAPPED_BYTES_PER_NGRAM = 30  # of an engine's files, which are mapped into memory
MIN_ENGINE_BYTES = {"duckdb": 128 * MB, "spark": 512 * MB}
NGRAMS_PER_SECOND = {"numpy": 1e6, "duckdb": 2e5, "spark": 1e5}  # on one or two cores
MIN_CHECKPOINT_SECONDS = 10.0  # an order that takes longer to count is saved


@dataclass(frozen=True, kw_only=True)
class CountingSettings:
    """The engine that counts, and its memory (as in `2GB`); memory alone means DuckDB.

    The memory is that of the whole process while it counts, Python and torch included. To build the
    model afterwards takes `estimate_peak_bytes`; pages of mapped files come on top. The engine
    writes into `folder`, by default the system's for temporary files (`TMPDIR`). Raises
    `RecipeError` for an unknown engine, one that is not installed, or a memory that is no amount.
    """

    engine: str = ""
    memory: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        name = self.engine or ("numpy" if self.memory is None else "duckdb")
        object.__setattr__(self, "engine", name)
        if name not in ENGINES:
            raise RecipeError(f"unknown engine {name!r}: {did_you_mean(name, ENGINES)}")
        if name == "numpy" and self.memory is not None:
            raise RecipeError(
                f"memory is {self.memory!r}, but numpy counts in as much as it needs: choose "
                "duckdb or spark"
            )
        if name in PACKAGES and not all(map(importlib.util.find_spec, ("ibis", PACKAGES[name][0]))):
            raise RecipeError(
                f"engine {name!r} is not installed: pip install 'rung[{PACKAGES[name][1]}]'"
            )
        if self.folder is not None and not isinstance(self.folder, str):
            raise RecipeError(
                f"counting.folder is {self.folder!r}: it must be the path of a folder"
            )
        try:
            _ = self.memory_bytes
        except (ValueError, AttributeError) as error:
            raise RecipeError(
                f"memory is {self.memory!r}: write an amount such as 512MB or 2GB"
            ) from error

    @property
    def memory_bytes(self) -> int:
        from accelerate.utils import convert_file_size_to_int

        return convert_file_size_to_int(self.memory or DEFAULT_MEMORY)

    @property
    def engine_bytes(self) -> int:
        """The engine's part of the memory: what the process has not taken, less the overhead."""
        return max(
            MIN_ENGINE_BYTES[self.engine],
            self.memory_bytes - process_memory() - OVERHEAD[self.engine],
        )

    def min_memory_bytes(self, engine: str = "") -> int:
        """The least memory that this engine, or the one named, can count in."""
        return (
            process_memory()
            + OVERHEAD[engine or self.engine]
            + MIN_ENGINE_BYTES[engine or self.engine]
        )

    def check_memory(self) -> None:
        """Raise `RecipeError` where the memory that is named is less than the engine needs.

        Where none is named, the engine gets its least beside a process of any size.
        """
        if self.memory is None or self.memory_bytes >= (least := self.min_memory_bytes()):
            return
        needed = OVERHEAD[self.engine] + MIN_ENGINE_BYTES[self.engine]
        raise RecipeError(
            f"memory is {self.memory}: Python and its libraries take {process_memory() // MB} MB "
            f"of it, {self.engine} {needed // MB} MB at the least; "
            f"{-(-least // (100 * MB)) * 100}MB suffices"
        )

    def keeps_checkpoints(self, tokens: int) -> bool:
        """Whether each order of so many tokens is saved: it would take long to count again."""
        return tokens >= MIN_CHECKPOINT_SECONDS * NGRAMS_PER_SECOND[self.engine]

    def estimate_peak_bytes(self, ngrams: int) -> int:
        """The most memory that the process takes for so many n-grams, without mapped files."""
        building = process_memory() + BUILD_BYTES_PER_NGRAM * ngrams
        return building if self.engine == "numpy" else max(self.memory_bytes, building)

    def describe(self, tokens: int, order: int) -> str:
        """Describe the count in a line: engine, tokens, memory, and its peak."""
        most = tokens * (order - 1)
        return (
            f"{self.engine} counts {tokens:,} tokens in {self.memory or DEFAULT_MEMORY} of memory, "
            f"{self.engine_bytes / 1e9:.2f} GB of it for the engine; while the model of at most "
            f"{most:,} n-grams is built, the process has at most "
            f"{self.estimate_peak_bytes(most) / 1e9:.2f} GB, and "
            f"{MAPPED_BYTES_PER_NGRAM * most / 1e9:.2f} GB of files mapped into memory"
        )

    def scratch_folder(self, run: Path) -> Path:
        """The folder of an engine's files while it counts for `run`, the same at each try."""
        name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        return Path(self.folder or tempfile.gettempdir()).expanduser() / f"rung-counting-{name}"


def process_memory() -> int:
    """The bytes of memory that this process takes now."""
    return psutil.Process().memory_info().rss
