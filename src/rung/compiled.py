"""C beside Python: a source compiled once by the machine's own compiler, for its processor, and kept in the cache."""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from rung.device import cache_folder

logger = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILING_SECONDS = 60


@cache
def compile_source(source: Path) -> ctypes.CDLL | None:
    """The library that `source` makes on this processor; None where nothing can compile it."""
    facts = f"{source.read_text()} {FLAGS} {platform.machine()} {_processor()}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    path = cache_folder() / "native" / f"{source.stem}-{digest}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            if not any(_run(compiler, source, beside) for compiler in COMPILERS):
                return None
            beside.replace(path)
        return ctypes.CDLL(str(path))
    except OSError as error:  # a cache that cannot be written to, a file that was damaged
        logger.debug("%s: %s", path, error)
        return None


def _run(compiler: str, source: Path, out: Path) -> bool:
    """Compile with threads, or without them where the compiler has none (Apple's)."""
    for threads in (["-fopenmp"], []):
        command = [compiler, *FLAGS, *threads, str(source), "-o", str(out), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILING_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            logger.debug("%s: %s", " ".join(command), error)
        else:
            return True
    return False


def _processor() -> str:
    """What the instructions are chosen by: a cache that several machines share keeps a library for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.node()}"  # too coarse a name to share a cache by
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
