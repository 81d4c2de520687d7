"""The share of the CPU that a run got: where other processes run too, its threads stand in a queue.

Linux counts, for each thread, how long it ran and how long it could have run and waited
(`/proc/PID/schedstat`). What sleeps, as a thread does while another reads a file or has the larger
part of a product, waits for nobody: on a quiet machine the share is near 1, however few of its
cores are kept busy. Under a quota, being held back is waiting too.
"""

from pathlib import Path

import torch

from rung.device import count_cores

TASKS = Path("/proc/self/task")
BUSY = 0.7  # of what the cores that may be used could have given: with less the machine was busy


class CpuMeter:
    """How long the threads of this process ran and waited, in nanoseconds, between `start` and
    `stop`.
    """

    def __init__(self) -> None:
        self.share: float | None = (
            None  # of the time in which they could have run; None where nobody counts
        )
        self.began: dict[str, tuple[int, int]] = {}

    def start(self) -> None:
        """Begin to measure."""
        self.began = read_threads()

    def stop(self) -> None:
        """Set `share`; a thread that ended meanwhile is left out."""
        now = read_threads()
        ran, waited = (sum(now[t][i] - self.began.get(t, (0, 0))[i] for t in now) for i in (0, 1))
        self.share = ran / (ran + waited) if ran > 0 else None


def read_threads() -> dict[str, tuple[int, int]]:
    """Of each thread of this process, the nanoseconds that it ran and that it waited; empty where
    nobody counts.
    """
    found = {}
    for thread in TASKS.glob("*") if TASKS.is_dir() else ():
        try:
            ran, waited, _ = (thread / "schedstat").read_text(encoding="ascii").split()
        except (OSError, ValueError):  # it has ended, or the kernel does not count
            continue
        found[thread.name] = (int(ran), int(waited))
    return found


def is_busy(share: float | None) -> bool:
    """Whether a run that got this share was held up by others, and not by itself: by more threads
    than cores.
    """
    return share is not None and share < BUSY * min(1.0, count_cores() / torch.get_num_threads())
