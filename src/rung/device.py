"""What this machine computes with: device, bfloat16, and its name in words."""

import ctypes
import os
import platform
import sys
import timeit
from functools import cache, partial
from pathlib import Path

import torch

MEASURED_SIZE, MEASURED_TIMES = 512, 10  # of a product, to find out which numbers are fast
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU: the first that is here."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32's; a CPU that has both is timed.

    Having them is not enough: an Intel Xeon with avx512_bf16 and no AMX is slower in them (benchmarks/precision.txt).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")) and _bfloat16_gain() > 1
    return False


@cache
def _bfloat16_gain() -> float:
    """How many times as fast this CPU multiplies matrices of bfloat16 as of float32: some milliseconds, once."""
    products = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=dtype)
        products.append(partial(torch.mm, matrix, matrix))
    rounds = [[timeit.timeit(product, number=1) for product in products] for _ in range(MEASURED_TIMES)]
    plain, half = map(min, zip(*rounds, strict=True))  # in turn: what else the machine does slows both
    return plain / half


def keep_freed_memory() -> None:
    """Have the C library keep what a training step frees for the next one, where it is glibc.

    Else every large tensor is fresh pages from the system, which costs a CPU a tenth of a small model's step
    (benchmarks/memory.py). The process keeps the memory of its largest step until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for threshold in (2**30, 2**25):  # some versions refuse the first
            if mallopt(M_MMAP_THRESHOLD, threshold):
                break
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def cache_folder() -> Path:
    """Where rung keeps what it can make again: `$RUNG_CACHE`, or `rung` in the user's cache folder."""
    if folder := os.environ.get("RUNG_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or ("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return Path(base).expanduser() / "rung"


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: torch.device) -> str:
    """The machine in words, as a run records it."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    cores = count_cores()
    bfloat16 = ", bfloat16" if has_fast_bfloat16(device) else ""
    return f"{cores} cores of {_processor_name()}{bfloat16}"


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
