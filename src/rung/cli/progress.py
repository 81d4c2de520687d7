"""The display of progress: a bar for each run on a terminal, elsewhere lines with time stamps."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rung.cli.output import escape_controls, find_overflow, is_quiet
from rung.progress import FACTS, OUTCOMES, Progress

LINE_INTERVAL = 10.0  # seconds between two plain lines about one stage
NAME_WIDTH = 14  # characters, of the names of runs
MIN_WIDTH_FOR_BAR, MIN_WIDTH_FOR_ELAPSED = 72, 48  # columns of a terminal that shows them
MARKS = {"done": ("✓", "green"), "failed": ("✗", "red"), "stopped": ("-", "yellow")}
ASCII_MARKS = {"done": "+", "failed": "x", "stopped": "-"}


@dataclass
class _Task:
    """A run and the stage that it is in."""

    name: str
    progress: Progress
    began: float
    entered: float = 0.0  # when the stage began
    first: int = 0  # what of the stage was done when it began
    printed: float = 0.0  # when the last plain line about it was printed
    outcome: str = ""  # one of `OUTCOMES`; empty while it goes on
    ended: float = 0.0
    failed: bool = False  # stays true once it is: a later success does not hide a failure
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def seconds(self, now: float) -> float:
        """The seconds that all its stages have taken."""
        return (self.ended if self.outcome else now) - self.began

    def seconds_left(self, now: float) -> float | None:
        """The seconds to the end of the stage at the rate so far; None where they are unknown."""
        if self.progress.seconds_left is not None and not self.outcome:
            return max(0.0, self.progress.seconds_left)
        moved = self.progress.done - self.first
        if self.outcome or not self.progress.total or moved <= 0:
            return None
        return max(0, self.progress.total - self.progress.done) * (now - self.entered) / moved


class Display:
    """Shows the progress of runs on standard error; nothing with `--quiet`.

    Of several processes the main one shows its own.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, console: Console | None = None
    ) -> None:
        self.clock = clock
        self.is_quiet = is_quiet()
        self.console = console or Console(stderr=True)
        self.tasks: dict[str, _Task] = {}
        self.current = ""
        self.facts: set[str] = set()
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.live: Live | None = None
        moves = self.console.file.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        if not self.is_quiet and (moves or (console is not None and console.is_terminal)):
            self.live = Live(console=self.console, get_renderable=self.draw, refresh_per_second=8)

    def __enter__(self) -> "Display":
        if self.live:
            # A line that is printed before the first refresh would spoil the bars.
            self.live.start(refresh=True)
        elif not self.is_quiet:
            threading.Thread(target=self._print_regularly, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.current:
            stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
            self.end("stopped" if stopped else "failed" if kind else "done")
        self.over.set()
        if self.live:
            self.live.stop()

    def show(self, progress: Progress) -> None:
        """Show how far a run is, that it has ended (`OUTCOMES`), or a fact about it (`FACTS`)."""
        if self.is_quiet:
            return
        with self.lock:
            if progress.stage in FACTS:
                self._show_fact(progress)
            elif progress.stage in OUTCOMES:
                self._end(progress.run, progress.stage, progress.note)
            else:
                self._move(progress)

    def end(self, outcome: str) -> None:
        """End the present run: done, failed or stopped."""
        with self.lock:
            self._end(self.current, outcome)

    def draw(self) -> Table:
        """Draw a line for each run, as wide as the terminal.

        Where that is narrow, the last columns are cut or left out, but never the time left.
        """
        width, now, cut = self.console.width, self.clock(), find_overflow(self.console)
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(width=NAME_WIDTH, no_wrap=True, overflow=cut)
        table.add_column(width=10, no_wrap=True)
        for room, columns in ((MIN_WIDTH_FOR_BAR, 15), (MIN_WIDTH_FOR_ELAPSED, 7), (0, 7)):
            if width >= room:
                table.add_column(
                    width=columns, no_wrap=True, justify="left" if columns > 7 else "right"
                )
        table.add_column(ratio=1, no_wrap=True, overflow=cut)
        for task in list(self.tasks.values()):  # `show` may add one meanwhile
            table.add_row(*self._draw_task(task, width, now))
        return table

    def print_when_due(self) -> None:
        """Print a plain line about the present stage, if the last line is long ago."""
        with self.lock:
            task, now = self.tasks.get(self.current), self.clock()
            if task and not task.outcome and now - task.printed >= LINE_INTERVAL:
                self._print_about(task, _describe(task, now))

    def _print_regularly(self) -> None:
        while not self.over.wait(1.0):
            self.print_when_due()

    def _move(self, progress: Progress) -> None:
        name = progress.run
        now, task = self.clock(), self.tasks.get(name)
        if task and self.current == name and not task.outcome:
            if task.progress.stage == progress.stage:
                task.progress = replace(progress, note=progress.note or task.progress.note)
                return
            self._end_stage(task)
        task = self.tasks.setdefault(name, _Task(name, progress, now))
        task.progress, task.entered, task.first, task.outcome = progress, now, progress.done, ""
        self.current = name
        self._print_about(task, progress.stage)

    def _end_stage(self, task: _Task) -> None:
        took = self.clock() - task.entered
        if took >= 1:  # else the next line says it
            note = f", {task.progress.note}" if task.progress.note else ""
            self._print_about(task, f"{task.progress.stage} took {show_time(took)}{note}")

    def _end(self, name: str, outcome: str, why: str = "") -> None:
        task = self.tasks.get(name)
        if task is None or task.outcome:
            return
        self._end_stage(task)
        task.failed = task.failed or outcome == "failed"
        task.outcome, task.ended = "failed" if task.failed else outcome, self.clock()
        task.progress = replace(task.progress, note=why or task.progress.note)
        self._print_about(
            task, f"{task.outcome} after {show_time(task.seconds(0))}{': ' if why else ''}{why}"
        )

    def _show_fact(self, progress: Progress) -> None:
        line = progress.note if progress.stage == "read" else f"{progress.run}: {progress.note}"
        if line in self.facts:
            return
        self.facts.add(line)
        if self.live:
            self.console.print(Text(escape_controls(line)))
        else:
            self._print(line)

    def _print_about(self, task: _Task, what: str) -> None:
        task.printed = self.clock()
        if not self.live:
            self._print(f"{task.name}: {what}")

    def _print(self, line: str) -> None:
        print(time.strftime("%H:%M:%S"), escape_controls(line), file=self.console.file, flush=True)

    def _draw_task(self, task: _Task, width: int, now: float) -> list[Text | Spinner | ProgressBar]:
        mark, style = MARKS.get(task.outcome, ("", ""))
        if find_overflow(self.console) == "crop":
            mark = ASCII_MARKS.get(task.outcome, "*")
        left = task.seconds_left(now)
        cells: list[Text | Spinner | ProgressBar] = [
            Text(mark, style) if mark else task.spinner,
            Text(escape_controls(task.name)),
            Text(task.outcome or task.progress.stage),
        ]
        if width >= MIN_WIDTH_FOR_BAR:
            cells.append(_draw_bar(task))
        if width >= MIN_WIDTH_FOR_ELAPSED:
            cells.append(Text(show_time(task.seconds(now)), "progress.elapsed"))
        cells.append(Text("" if left is None else show_time(left), "progress.remaining"))
        return [*cells, Text(escape_controls(" ".join(task.progress.note.split())))]


def _draw_bar(task: _Task) -> ProgressBar:
    if task.outcome == "done":
        return ProgressBar(total=1, completed=1)
    if not task.progress.total:
        return ProgressBar(total=1, completed=0, pulse=not task.outcome)
    return ProgressBar(total=task.progress.total, completed=task.progress.done)


def _describe(task: _Task, now: float) -> str:
    """How far the stage is, at what rate, and how long it will go on."""
    progress, left = task.progress, task.seconds_left(now)
    parts = [progress.stage]
    if progress.total:
        parts = [f"{progress.stage} {progress.done:,} of {progress.total:,}"]
    parts += [progress.note] if progress.note else []
    parts.append(
        f"{show_time(now - task.entered)} so far" if left is None else f"{show_time(left)} left"
    )
    return ", ".join(parts)


def show_time(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
        if minutes >= 60
        else f"{minutes}:{rest:02d}"
    )
