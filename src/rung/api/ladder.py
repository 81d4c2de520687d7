"""The runs of a climb, from the lowest rung to the highest."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rung.api.notebook import show_ladder, show_swaps
from rung.api.run import Run
from rung.errors import RunError, did_you_mean
from rung.workflows.climb import REPORT, Climb
from rung.workflows.climb_swaps import SwapClimb


class Ladder(Sequence[Run]):
    """The runs of a climb, by their places or by the names of their rungs.

    A notebook shows it as a table.
    """

    def __init__(self, plan: Climb | SwapClimb, runs: Sequence[Run]) -> None:
        self.plan = plan
        self._runs = {run.folder.name: run for run in runs}

    @property
    def folder(self) -> Path:
        """The folder that holds the runs and the report."""
        return self.plan.folder

    @property
    def report(self) -> Path:
        """The page that compares the runs."""
        return self.folder / REPORT

    @property
    def folders(self) -> list[Path]:
        """The folders of the runs."""
        return [run.folder for run in self]

    @property
    def best(self) -> Run | None:
        """The run that needs the fewest bits per byte; None where no run has a score."""
        scored = [run for run in self if run.scores.get("bits_per_byte") is not None]
        return min(scored, key=lambda run: run.scores["bits_per_byte"], default=None)

    def plan_longer(self) -> Climb:
        """The same climb with four times the minutes, in a folder beside this one."""
        assert isinstance(self.plan, Climb)
        folder = self.folder.with_name(f"{self.folder.name}-longer")
        return replace(self.plan, minutes=4 * self.plan.minutes, folder=folder)

    def __getitem__(self, name: str | int) -> Run:  # type: ignore[override]  # no slices
        """The run of a rung, or at a place. Raises `RunError` for a rung that is not there."""
        if isinstance(name, int):
            return list(self._runs.values())[name]
        if name not in self._runs:
            raise RunError(f"no run {name!r} in {self.folder}: {did_you_mean(name, self._runs)}")
        return self._runs[name]

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return "\n".join([f"Ladder({str(self.folder)!r})", *(f"  {run!r}" for run in self)])

    def _repr_html_(self) -> str:
        show = show_swaps if isinstance(self.plan, SwapClimb) else show_ladder
        return show(self.folders)
