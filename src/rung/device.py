"""What this machine computes with: device, bfloat16, and its name in words."""

import ctypes
import os
import platform
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU: the first that is here."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware; elsewhere they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


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
