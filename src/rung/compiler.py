"""C beside Python: a source compiled once by the machine's own compiler, for its processor, and
kept in the cache.
"""

import ctypes
import hashlib
import logging
import os
import platform
import stat
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from rung.files import cache_folder, make_once

logger = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILING_SECONDS = 60


@cache
def compile_source(source: Path) -> ctypes.CDLL | None:
    """The library that `source` makes on this processor; None where nothing can compile it.

    It is kept in the cache, and run from there only where no other user can have put it there or
    changed it.
    """
    facts = f"{source.read_text()} {FLAGS} {platform.machine()} {_processor()}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    kept, name = cache_folder() / "native" / f"{source.stem}-{digest}", f"{source.stem}.so"
    make = partial(_compile, source, name)
    try:
        _check_trusted(kept.parents[1], kept.parent)
        make_once(kept, make)
        _check_trusted(kept, kept / name)
        return ctypes.CDLL(str(kept / name))
    except _NoCompilerError:
        return None
    except OSError as error:  # that may not be run, or a cache that cannot be written to
        logger.warning("%s: C is compiled for this process alone", error)
    try:
        with tempfile.TemporaryDirectory(
            prefix="rung-"
        ) as folder:  # nobody else's; a library stays once it is loaded
            make(Path(folder))
            return ctypes.CDLL(str(Path(folder) / name))
    except (OSError, _NoCompilerError) as error:
        logger.debug("%s: %s", source, error)
        return None


class _NoCompilerError(Exception):
    """Nothing on this machine can compile the source."""


def _check_trusted(*paths: Path) -> None:
    """Raise `PermissionError` for one that another user owns, or that everyone may write to."""
    for path in filter(Path.exists, paths):
        facts = path.stat()
        if hasattr(os, "geteuid") and facts.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} is another user's")
        if facts.st_mode & stat.S_IWOTH:
            raise PermissionError(f"{path} may be written to by everyone")


def _compile(source: Path, name: str, folder: Path) -> None:
    if not any(_run(compiler, source, folder / name) for compiler in COMPILERS):
        raise _NoCompilerError


class Address:
    """Where C finds the numbers of a tensor, which stays alive as long as its address does.

    Raises `ValueError` for a tensor that is not on the CPU, in one piece, of this shape and type: C
    would read and write what lies beside it.
    """

    __slots__ = ("_as_parameter_", "tensor", "value")

    def __init__(self, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if not (
            tensor.is_contiguous()
            and tensor.is_cpu
            and tensor.dtype == dtype
            and tensor.shape == shape
        ):
            found = (
                f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}, strides "
                f"{list(tensor.stride())}"
            )
            raise ValueError(
                f"a tensor for C is {found}: it must be {list(shape)} of {dtype}, contiguous, on "
                f"the CPU"
            )
        self.tensor = tensor
        self.value = self._as_parameter_ = tensor.data_ptr()  # the latter is what ctypes reads


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
    """What the instructions are chosen by: a cache that several machines share keeps a library for
    each.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.node()}"  # too coarse a name to share a cache by
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
