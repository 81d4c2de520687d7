"""What this machine computes with: device, cores, threads and how they wait, bfloat16, and its name
in words.

torch is imported by what needs it: how OpenMP's threads wait can be chosen only before.
"""

import ctypes
import logging
import math
import os
import platform
import re
import sys
import time
import timeit
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# How often a thread looks whether the others have come before it sleeps: about a millisecond.
# libgomp's own 300,000 are more than a time slice, and 1,000 are over before the next layer begins
# (benchmarks/device/threads.py).
SPINS = "40000"
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
WATCHED_SECONDS = 0.2  # in which it is seen what other processes use
MEASURED_SIZE, MEASURED_TIMES = 512, 10  # of a product, to find out which numbers are fast
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device() -> "torch.device":
    """CUDA, then Apple's MPS, then the CPU: the first that is here."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_fast_bfloat16(device: "torch.device") -> bool:
    """Whether bfloat16 matrix products are faster than float32's; a CPU that has both is timed.

    Having them is not enough: an Intel Xeon with avx512_bf16 and no AMX is slower in them
    (benchmarks/device/precision.txt).
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return (
            bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
            and _bfloat16_gain() > 1
        )
    return False


@cache
def _bfloat16_gain() -> float:
    """How many times as fast this CPU multiplies matrices of bfloat16 as of float32: some
    milliseconds, once.

    One thread's own time is measured, which does not run while something else has the core.
    """
    import torch

    threads, products = torch.get_num_threads(), []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=dtype)
        products.append(partial(torch.mm, matrix, matrix))
    time_once = partial(timeit.timeit, timer=time.thread_time, number=1)
    torch.set_num_threads(1)
    try:
        rounds = [[time_once(product) for product in products] for _ in range(MEASURED_TIMES)]
    finally:
        torch.set_num_threads(threads)
    plain, half = map(min, zip(*rounds, strict=True))
    return plain / max(half, 1e-9)  # some systems count threads' time in large steps


@cache
def has_bfloat16_lstm() -> bool:
    """Whether this CPU has an LSTM under autocast to bfloat16: oneDNN has none for AVX2. Where not,
    says so once.
    """
    import torch

    zeros = torch.zeros(4, 1, 1)
    state, weights = (
        [zeros[:1], zeros[:1]],
        [zeros[:, 0], zeros[:, 0], zeros[:, 0, 0], zeros[:, 0, 0]],
    )
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.lstm(zeros[:1], state, weights, True, 1, 0.0, False, False, True)
    except RuntimeError:
        logger.warning("this processor has no LSTM in bfloat16: that part is computed in float32")
        return False
    return True


def retain_freed_memory() -> None:
    """Have the C library keep what a training step frees for the next one, where it is glibc.

    Else every large tensor is fresh pages from the system, which costs a CPU a tenth of a small
    model's step (benchmarks/device/memory.py). The process keeps the memory of its largest step
    until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for threshold in (2**30, 2**25):  # some versions refuse the first
            if mallopt(M_MMAP_THRESHOLD, threshold):
                break
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def configure_threads() -> None:
    """Have as many threads as cores that this process may use, and have them sleep soon when they
    wait for each other.

    OpenMP's threads spin at a barrier for milliseconds. Beside other processes, the thread that
    they wait for is often one that has no core meanwhile: 200 tokens of a small Llama took 13 s so,
    and 0.2 s with threads that sleep.

    Sets environment variables, for child processes too; what the user has set stands. OpenMP reads
    them when torch is loaded: the command calls this first of all, a program that imports rung
    calls it before torch is imported. After that only the number of threads is changed.
    """
    cores = count_cores()
    if not any(name in os.environ for name in WAIT_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = SPINS
        os.environ["KMP_BLOCKTIME"] = (
            "1"  # millisecond, of Intel's and LLVM's OpenMP; theirs is 200
        )
    os.environ.setdefault("RAYON_NUM_THREADS", str(cores))  # of tokenizers
    if not may_choose_threads() or "OMP_NUM_THREADS" in os.environ:
        return
    os.environ["OMP_NUM_THREADS"] = str(cores)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(min(cores, torch.get_num_threads()))


@cache
def may_choose_threads() -> bool:
    """Whether the number of threads is rung's to choose: the user has set none. Asked before rung
    itself sets it.
    """
    return "OMP_NUM_THREADS" not in os.environ


def avoid_busy_cores() -> None:
    """Have no more threads than there are cores that other processes leave free, and one at least.

    Threads that share a core with something else hold each other up at every operation: beside four
    busy processes a small RNN learned 564 tokens a second with two threads, and 4,340 with one. A
    number that the user set stands.
    """
    import torch

    if not may_choose_threads():
        return
    cores, free = count_cores(), _watch_free_cores()
    threads = cores if free >= cores else max(1, round(free))
    if threads < min(cores, torch.get_num_threads()):
        logger.info(
            "other processes keep this machine's cores busy: %d of %d threads", threads, cores
        )
    torch.set_num_threads(threads)


def restore_thread_count(threads: int) -> None:
    """Go on with so many threads as a run was begun with, where there are cores for them; a user's
    number stands.
    """
    import torch

    if may_choose_threads():
        torch.set_num_threads(min(threads, count_cores()))


def _watch_free_cores(statistics: Path = Path("/proc/stat")) -> float:
    """How many of the cores that this process may use nothing used for a moment; infinitely many
    where nobody knows.
    """
    before = _read_core_times(statistics)
    time.sleep(WATCHED_SECONDS)
    after = _read_core_times(statistics)
    free = 0.0
    for core in before.keys() & after.keys():
        idle, total = (late - early for early, late in zip(before[core], after[core], strict=True))
        free += idle / total if total > 0 else 1.0
    return free if before else math.inf


def _read_core_times(statistics: Path) -> dict[int, tuple[int, int]]:
    """Of each core that this process may use, how long it was idle and how long it has been there,
    in clock ticks.
    """
    try:
        lines = statistics.read_text(encoding="ascii").splitlines()
        allowed = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return {}
    found = {}
    for line in lines:
        name, *fields = line.split()
        if re.fullmatch(r"cpu\d+", name) and int(name[3:]) in allowed:
            ticks = [
                int(field) for field in fields[:8]
            ]  # user, nice, system, idle, waiting for disks, ..., stolen
            found[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return found


def count_cores(process: Path = Path("/proc/self")) -> int:
    """The cores that this process may use: those that its affinity allows, no more than its
    container's quota.

    A part of a core counts as one: two threads use up a quota of 1.5 cores, one leaves a third of
    it.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = min((_read_quota(folder) for folder in _control_groups(process)), default=math.inf)
    return allowed if quota >= allowed else max(1, math.ceil(quota))


def _control_groups(process: Path) -> Iterator[Path]:
    """The folders of the control groups (versions 1 and 2) that share out CPU time to this process,
    and all above.
    """
    try:
        groups = [
            line.split(":", 2)
            for line in (process / "cgroup").read_text(encoding="utf-8").splitlines()
        ]
        mounts = [
            line.split()
            for line in (process / "mountinfo").read_text(encoding="utf-8").splitlines()
        ]
    except OSError:
        return  # no Linux, or nothing that may be read
    paths = {
        "cgroup" if names else "cgroup2": path
        for _, names, path in groups
        if "cpu" in names.split(",") or not names
    }
    for mount in mounts:
        kind, _, options = mount[mount.index("-") + 1 :][:3]
        if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        root, top = (
            Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), part))
            for part in mount[3:5]
        )
        path = Path(paths[kind])
        inside = (
            path.relative_to(root)
            if path.is_relative_to(root) and ".." not in path.parts
            else Path()
        )
        yield from (top / part for part in (inside, *inside.parents))


def _read_quota(group: Path) -> float:
    """How many cores' time a control group may use."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # none, "max", or nothing that may be read
        return math.inf


def describe_device(device: "torch.device") -> str:
    """The machine in words, as a run records it."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    cores = count_cores()
    bfloat16 = ", bfloat16" if has_fast_bfloat16(device) else ""
    return f"{cores} cores of {_processor_name()}{bfloat16}"


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
