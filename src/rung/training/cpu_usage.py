"""The share of the CPU that a run got beside other processes.

Linux counts, for each thread, how long it ran and how long it could have run but waited
(`/proc/PID/schedstat`). A thread that sleeps, while another reads a file or has the larger part of
a product, does not wait: on a quiet machine the share is near 1, however few cores are busy. Under
a quota the time that a thread is held back counts as waiting.
"""

from pathlib import Path

import torch

from rung.device import count_cores

TASKS = Path("/proc/self/task")
# With less of what the usable cores could have given, the machine was busy.
BUSY_SHARE = 0.7


class CpuMeter:
    """Measures how long the threads of this process ran and waited, between `start` and `stop`."""

    def __init__(self) -> None:
        # Of the time in which they could have run; None where the system does not count it.
        self.share: float | None = None
        self.began: dict[str, tuple[int, int]] = {}

    def start(self) -> None:
        self.began = read_threads()

    def stop(self) -> None:
        """Set `share`. A thread that ended meanwhile is left out."""
        now = read_threads()
        ran, waited = (sum(now[t][i] - self.began.get(t, (0, 0))[i] for t in now) for i in (0, 1))
        self.share = ran / (ran + waited) if ran > 0 else None


def read_threads() -> dict[str, tuple[int, int]]:
    """Read for each thread of this process the nanoseconds that it ran and that it waited.

    The result is empty where the system does not count them.
    """
    found = {}
    for thread in TASKS.glob("*") if TASKS.is_dir() else ():
        try:
            ran, waited, _ = (thread / "schedstat").read_text(encoding="ascii").split()
        # The thread has ended, or the kernel does not count.
        except (OSError, ValueError):
            continue
        found[thread.name] = (int(ran), int(waited))
    return found


def is_busy(share: float | None) -> bool:
    """Whether other processes held up a run that got this share.

    With more threads than cores a run holds itself up, which does not count.
    """
    return share is not None and share < BUSY_SHARE * min(
        1.0, count_cores() / torch.get_num_threads()
    )
