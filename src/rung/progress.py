"""Where the making of a run is, told to whoever draws a bar."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Where the making of a run is: for whoever draws a bar. `total` and `seconds_left` are None
    where nobody knows.

    `read`, `planned` and `noted` are facts, in the note; `done` and `failed`, with the reason in
    the note, end a run.
    """

    name: str
    done: int = 0
    total: int | None = None
    note: str = ""
    seconds_left: float | None = None


Tell = Callable[[Stage], None]
