"""Where the making of a run is, told to whoever draws a bar."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Where the making of a run is: for whoever draws a bar. `total` is None where nobody knows."""

    name: str
    done: int = 0
    total: int | None = None
    note: str = ""


Tell = Callable[[Stage], None]
