"""Choose the device and the threads of this machine, and describe its hardware.

The module imports torch only inside functions: environment variables decide how OpenMP's threads
wait, and OpenMP reads them when torch is loaded.
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

# A waiting thread checks a barrier this often before it sleeps, for about a millisecond. libgomp's
# default of 300,000 checks takes longer than a time slice, and 1,000 checks end before the next
# layer begins (benchmarks/device/threads.py).
SPINS = "40000"
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
# The load of other processes is observed for this long.
WATCHED_SECONDS = 0.2
# bfloat16 is timed by products of square matrices of this size, this many times, or twice where
# they take this many seconds of CPU time.
MEASURED_SIZE, MEASURED_TIMES, LONG_MEASUREMENT = 512, 10, 0.05
# glibc's malloc.h numbers the options of mallopt in this way.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def choose_device() -> "torch.device":
    """Return CUDA if it is available, else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_fast_bfloat16(device: "torch.device") -> bool:
    """Return whether bfloat16 matrix products are faster than float32 ones.

    A CPU with bfloat16 instructions is timed, because an Intel Xeon with avx512_bf16 and no AMX is
    slower in bfloat16 (benchmarks/device/precision.txt).
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
    """Return how many times as fast as float32 this CPU multiplies bfloat16 matrices.

    The measurement takes some milliseconds and is made once. It counts the CPU time of one thread,
    which stops while another process has the core.
    """
    import torch

    threads, products = torch.get_num_threads(), []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=dtype)
        products.append(partial(torch.mm, matrix, matrix))
    time_once = partial(timeit.timeit, timer=time.thread_time, number=1)
    torch.set_num_threads(1)
    try:
        rounds = [[time_once(product) for product in products] for _ in range(2)]
        while len(rounds) < MEASURED_TIMES and sum(map(sum, rounds)) < LONG_MEASUREMENT:
            rounds.append([time_once(product) for product in products])
    finally:
        torch.set_num_threads(threads)
    plain, half = map(min, zip(*rounds, strict=True))
    # Some systems count a thread's CPU time in coarse steps, so it may be zero.
    return plain / max(half, 1e-9)


@cache
def is_onednn_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster than MKL, which torch takes.

    MKL uses AVX-512 on Intel's processors alone, and oneDNN on AMD's too: twice as many products a
    second (benchmarks/device/precision-amd.txt).
    """
    import torch

    backends = torch.backends
    is_wide = backends.cpu.get_cpu_capability() == "AVX512" and "AMD" in _processor_name()
    return is_wide and backends.mkl.is_available() and backends.mkldnn.is_available()


@cache
def has_bfloat16_lstm() -> bool:
    """Return whether this CPU can run an LSTM under autocast to bfloat16; warn once if not.

    oneDNN has no bfloat16 LSTM for AVX2.
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
    """Make glibc keep the memory that one training step frees for the next step.

    Otherwise the system provides new pages for every large tensor, which takes a tenth of a small
    model's step on a CPU (benchmarks/device/memory.py). The process keeps the memory of its largest
    step until it ends. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        # Some versions of glibc refuse the larger threshold.
        for threshold in (2**30, 2**25):
            if mallopt(M_MMAP_THRESHOLD, threshold):
                break
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def configure_threads() -> None:
    """Use a thread for each core that this process may use, and let waiting threads sleep soon.

    OpenMP's threads spin at a barrier for milliseconds. On a busy machine, the thread that they
    wait for often has no core in the meantime: 200 tokens of a small Llama took 13 s with spinning
    threads and 0.2 s with sleeping ones.

    The function sets environment variables, also for child processes, and keeps those that the user
    has set. OpenMP reads them when torch is loaded: the command calls this function first, and a
    program that imports rung calls it before it imports torch. After torch is loaded, a call
    changes only the number of threads.
    """
    cores = count_cores()
    if not any(name in os.environ for name in WAIT_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = SPINS
        # Intel's and LLVM's OpenMP read this number of milliseconds; their default is 200.
        os.environ["KMP_BLOCKTIME"] = "1"
    # The tokenizers library reads this variable.
    os.environ.setdefault("RAYON_NUM_THREADS", str(cores))
    if not may_choose_threads() or "OMP_NUM_THREADS" in os.environ:
        return
    os.environ["OMP_NUM_THREADS"] = str(cores)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(min(cores, torch.get_num_threads()))


@cache
def may_choose_threads() -> bool:
    """Return whether rung may choose the number of threads, because the user has set none.

    The first call must come before rung sets the variable; later calls return the same result.
    """
    return "OMP_NUM_THREADS" not in os.environ


def avoid_busy_cores() -> None:
    """Use no more threads than other processes leave cores free, but at least one.

    Threads that share a core with another process delay each other at every operation: beside four
    busy processes, a small RNN learned 564 tokens a second with two threads and 4,340 with one. A
    number of threads that the user has set is kept.
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
    """Use as many threads as a run began with, or fewer if there are fewer cores.

    A number of threads that the user has set is kept.
    """
    import torch

    if may_choose_threads():
        torch.set_num_threads(min(threads, count_cores()))


def _watch_free_cores(statistics: Path = Path("/proc/stat")) -> float:
    """Measure how many of the cores that this process may use are free.

    The result is infinite on a system that does not report the use of its cores.
    """
    before = _read_core_times(statistics)
    time.sleep(WATCHED_SECONDS)
    return _count_free(before, _read_core_times(statistics))


class CoreWatch:
    """Watches how many of the cores that this process may use are free, while it works."""

    def __init__(self, statistics: Path = Path("/proc/stat")) -> None:
        self.statistics, self.free = statistics, 0.0
        self.before, self.looked = _read_core_times(statistics), time.monotonic()

    def count_free(self) -> float:
        """Return how many cores were free between the last two looks at them.

        There are at least `WATCHED_SECONDS` between them; before the second one none is free. The
        result is infinite on a system that does not report the use of its cores.
        """
        if self.before and time.monotonic() - self.looked >= WATCHED_SECONDS:
            after = _read_core_times(self.statistics)
            self.free = _count_free(self.before, after)
            self.before, self.looked = after, time.monotonic()
        return self.free if self.before else math.inf


def _count_free(before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]]) -> float:
    """Count the cores that were free between two readings of their times."""
    free = 0.0
    for core in before.keys() & after.keys():
        idle, total = (late - early for early, late in zip(before[core], after[core], strict=True))
        free += idle / total if total > 0 else 1.0
    return free if before else math.inf


def _read_core_times(statistics: Path) -> dict[int, tuple[int, int]]:
    """Read the idle and total clock ticks of each core that this process may use."""
    try:
        lines = statistics.read_text(encoding="ascii").splitlines()
        allowed = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return {}
    found = {}
    for line in lines:
        name, *fields = line.split()
        if re.fullmatch(r"cpu\d+", name) and int(name[3:]) in allowed:
            # The fields are user, nice, system, idle, iowait, irq, softirq and steal time.
            ticks = [int(field) for field in fields[:8]]
            found[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return found


def count_cores(process: Path = Path("/proc/self")) -> int:
    """Count the cores that this process may use, by its affinity and its container's quota.

    A part of a core counts as a whole one: two threads use up a quota of 1.5 cores, and one thread
    would leave a third of the quota unused.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = min((_read_quota(folder) for folder in _control_groups(process)), default=math.inf)
    return allowed if quota >= allowed else max(1, math.ceil(quota))


def _control_groups(process: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process's CPU time.

    Parents of these folders are included, and both versions of control groups are supported.
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
        # The system is not Linux, or the files may not be read.
        return
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
    """Read how many cores' time a control group may use; return infinity if there is no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):
        # The group has no quota, its quota is "max", or its files may not be read.
        return math.inf


def describe_device(device: "torch.device") -> str:
    """Describe the hardware in words, for a run's record."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    kind = ""
    if has_fast_bfloat16(device):
        kind = ", bfloat16"
    elif torch.backends.cpu.get_cpu_capability() == "AVX2":
        kind = ", AVX2"
    return f"{count_cores()} cores of {_processor_name()}{kind}"


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
