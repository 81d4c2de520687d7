"""Climb from GPT-2 to Llama 3 one swap at a time: a model for each swap, with several seeds.

All models are trained for equal steps on the same text.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rung import runs
from rung.data.files import DocumentKind
from rung.errors import RecipeError
from rung.models.swaps import SWAPS
from rung.progress import OnProgress, Progress, ignore_progress
from rung.recipe import Recipe
from rung.report.swaps import BASE_RUNG, END_RUNG, write_swaps
from rung.workflows.climb import REPORT, TEXT, make_runs

# A run of these steps and this shape takes about a minute on two cores.
STEPS = 800
# The `intermediate_size` is SwiGLU's: the multiple of 8 nearest to two thirds of GELU's width.
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 344,
}


@dataclass(frozen=True, kw_only=True)
class SwapClimb:
    """The settings of a climb by swaps: rungs, text, steps of a run, seeds, and the runs' folder.

    Raises `RecipeError` for rungs that have no swaps between them, and for an empty `seeds`.
    """

    between: tuple[str, str] = (BASE_RUNG, END_RUNG)
    corpus: str | list[str] = "python-docs"
    documents: DocumentKind = "paragraphs"
    column: str | None = None
    encoding: str | None = None
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"kind": "bpe"})
    steps: int = STEPS
    seeds: tuple[int, ...] = (0, 1, 2)
    folder: Path = Path("runs/swaps")

    def __post_init__(self) -> None:
        if self.between != (BASE_RUNG, END_RUNG):
            asked = " ".join(self.between)
            raise RecipeError(
                f"there are no swaps between {asked}: write --between {BASE_RUNG} {END_RUNG}"
            )
        if not self.seeds:
            raise RecipeError(
                "there are no seeds: --seeds must be 1 or more, and an interval takes 2"
            )

    def recipes(self) -> dict[Path, Recipe]:
        """Return the recipe of each run by the run's folder.

        The runs are ordered seed by seed, so that a stopped climb has whole seeds to compare.
        """
        sets = {BASE_RUNG: [], **{name: [name] for name in SWAPS}, END_RUNG: list(SWAPS)}
        return {
            self.folder / f"{name}-seed{seed}": Recipe(
                rung="swaps",
                corpus=self.corpus,
                documents=self.documents,
                column=self.column,
                encoding=self.encoding,
                tokenizer=self.tokenizer,
                model={**SHAPE, "swaps": swaps},
                steps=self.steps,
                seed=seed,
            )
            for seed in self.seeds
            for name, swaps in sets.items()
        }


def climb_swaps(plan: SwapClimb, on_progress: OnProgress = ignore_progress) -> list[Path]:
    """Make the runs that are not finished, and return the folders of all.

    Each `Progress` names the seed as its run, and the model in its note. Raises the errors that
    `climb` raises.
    """
    recipes = plan.recipes()
    models = len(recipes) // len(plan.seeds)
    places = {folder.name: place % models + 1 for place, folder in enumerate(recipes)}

    def show_seed(progress: Progress) -> None:
        run = progress.run
        if run == TEXT:
            on_progress(progress)
            return
        # A seed is done with the last of its models.
        if progress.stage == "done" and places[run] < models:
            return
        name, _, seed = run.rpartition("-seed")
        note = f"{places[run]} of {models}: {name} {progress.note}"
        on_progress(replace(progress, run=f"seed {seed}", note=note))

    def report(begun: list[Path]) -> None:
        # Nothing resumes from a finished run, and the checkpoints of so many runs fill the disk.
        for folder in filter(runs.is_finished, begun):
            shutil.rmtree(folder / runs.CHECKPOINTS, ignore_errors=True)
        write_swaps(begun, plan.folder / REPORT)

    make_runs(recipes, show_seed, report)
    return list(recipes)
