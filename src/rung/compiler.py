"""Compile C sources with the machine's own compiler, and keep the libraries in the cache."""

import ctypes
import hashlib
import logging
import os
import platform
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rung.files import cache_folder, make_once

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILING_SECONDS = 60


@cache
def compile_source(source: Path) -> ctypes.CDLL | None:
    """Compile `source` for this processor and load it; return None where that is not possible.

    The library is kept in the cache. It is loaded from there only if no other user can have put it
    there or changed it.
    """
    kept = cache_folder() / "native" / f"{source.stem}-{_fingerprint(source)}"
    name = f"{source.stem}.so"
    try:
        _check_trusted(kept.parents[1], kept.parent)
        with make_once(kept) as beside:
            if beside:
                _compile(source, beside / name)
        _check_trusted(kept, kept / name)
        return ctypes.CDLL(str(kept / name))
    except _NoCompilerError:
        return None
    except OSError as error:
        # The cache cannot be written to or trusted, or its libraries may not be loaded.
        logger.warning("%s: C is compiled for this process alone", error)
    try:
        # No other user can write into this folder. A loaded library outlives its file.
        with tempfile.TemporaryDirectory(prefix="rung-") as folder:
            library = Path(folder) / name
            _compile(source, library)
            return ctypes.CDLL(str(library))
    except (OSError, _NoCompilerError) as error:
        logger.debug("%s: %s", source, error)
        return None


def fingerprint_build(source: Path) -> str:
    """Return a digest of what makes the machine code of `source`, the compiler's version too."""
    return _fingerprint(source, _compiler_version())


def _fingerprint(source: Path, *more: str) -> str:
    facts = " ".join([source.read_text(), str(FLAGS), platform.machine(), _processor(), *more])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


@cache
def _compiler_version() -> str:
    for compiler in COMPILERS:
        try:
            command = [compiler, "--version"]
            made = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILING_SECONDS
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return made.stdout.partition("\n")[0]
    return "no compiler"


class _NoCompilerError(Exception):
    """Nothing on this machine can compile the source."""


def _check_trusted(*paths: Path) -> None:
    """Raise `PermissionError` for a path that another user owns or that everyone may write to."""
    for path in filter(Path.exists, paths):
        facts = path.stat()
        if hasattr(os, "geteuid") and facts.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} is another user's")
        if facts.st_mode & stat.S_IWOTH:
            raise PermissionError(f"{path} may be written to by everyone")


def _compile(source: Path, library: Path) -> None:
    if not any(_run(compiler, source, library) for compiler in COMPILERS):
        raise _NoCompilerError


class Address:
    """The address of a tensor's values for C; it keeps the tensor alive.

    Raises `ValueError` for a tensor that is not contiguous, not on the CPU, or of another shape or
    type: C would read and write memory beside the tensor.
    """

    __slots__ = ("_as_parameter_", "tensor", "value")

    def __init__(self, tensor: "Tensor", shape: tuple[int, ...], dtype: "torch.dtype") -> None:
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
        # ctypes passes `_as_parameter_` to C.
        self.value = self._as_parameter_ = tensor.data_ptr()


def _run(compiler: str, source: Path, out: Path) -> bool:
    """Compile with OpenMP, or without it where the compiler (such as Apple's) has none."""
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
    """Describe the processor's instruction set.

    Machines that share a cache then each have a library for their own processor.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        # The processor's name does not tell its instructions, so each machine has its own library.
        return f"{platform.processor()} {platform.node()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
