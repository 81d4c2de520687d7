"""Train one rung, or fit it by counting: `rung.train`."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rung import distributed
from rung.api.interrupts import name_saved_work
from rung.api.options import (
    CorpusName,
    check_not_given,
    name_corpus,
    name_folder,
    name_tokenizer,
    read_set,
)
from rung.api.run import Run
from rung.models.sizes import SIZES
from rung.progress import OnProgress, for_run, ignore_progress
from rung.recipe import Recipe, leave_length_open, make_recipe, read_recipe
from rung.training.clock import now
from rung.workflows.estimate import estimate_costs
from rung.workflows.run_folder import check_unused, read_begun
from rung.workflows.train import execute


def train(
    rung: str = "",
    corpus: CorpusName = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
    **settings: Any,
) -> Run:
    """Train one rung on a corpus, or fit it by counting, and score it on held-out text.

    >>> run = rung.train("gpt2", "my.txt", steps=2, hidden_size=32, out="small")
    >>> run.scores["bits_per_byte"] > 0
    True
    >>> run = rung.train("bigram", "my.txt", tokenizer="char")
    >>> run.folder
    PosixPath('runs/my-bigram')

    `rung` is a rung or a size of one, `corpus` a name (`rung corpora`), `hf:ORG/NAME`, or paths.
    Settings are the keys of a recipe (`minutes`, `steps`, `tokenizer`, `documents`, `column`,
    `encoding`, `seed`, ...), the fields of the rung's configuration and those of Hugging Face's
    TrainingArguments. `set` is a mapping of more of them, for dotted names as
    `{"train.learning_rate": 1e-3}`; `recipe` is the path of a recipe to start from. Without
    `minutes` or `steps` a rung is trained for 5 minutes, counted from `began` by
    `time.perf_counter()`, else from the call.

    The run goes to the folder `out`, by default `runs/CORPUS-RUNG`. With `resume` a run goes on
    from its last checkpoint there. `on_progress` is called with each `Progress`.
    Raises a child of `RungError` for a mistake of the user, and `Interrupted` after
    Ctrl-C, when the work so far is saved.
    """
    began = now() if began is None else began
    recipe, folder = _plan(rung, corpus, settings, out, resume=resume)
    again = f"rung.train(out={str(folder)!r}, resume=True)"
    with name_saved_work(folder, again):
        if not execute(recipe, folder, for_run(recipe.rung, on_progress), began):
            raise KeyboardInterrupt
    return Run(folder)


def estimate(
    rung: str = "",
    corpus: CorpusName = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
    **settings: Any,
) -> dict[str, str]:
    """Estimate the memory, disk and time that `train` takes with the same arguments.

    The first entry is the rung's name. Nothing is written but the text, into the cache. Raises
    `RungError` for what the run itself is refused for.
    """
    recipe, folder = _plan(rung, corpus, settings, out, resume=resume)
    found = distributed.on_main(estimate_costs)(recipe, folder, for_run(recipe.rung, on_progress))
    return {"rung": recipe.rung} | found


def _plan(
    rung: str,
    corpus: CorpusName,
    settings: dict[str, Any],
    out: str | Path | None,
    *,
    resume: bool,
) -> tuple[Recipe, Path]:
    """The recipe, begun before or made now, and the run's folder."""
    given = {key: value for key, value in settings.items() if key not in ("set", "recipe")}
    given |= {"rung": rung, "corpus": name_corpus(corpus)}
    given = {key: value for key, value in given.items() if value not in (None, "")}
    if "tokenizer" in given:
        given["tokenizer"] = name_tokenizer(given["tokenizer"])
    overrides = read_set(settings)
    if resume:
        folder = out or name_folder(given.get("corpus", "python-docs"), given.get("rung", ""))
        beyond = given | {"recipe": settings.get("recipe"), "set": overrides}
        return _read_begun(Path(folder), beyond), Path(folder)
    page = _fill_page(settings.get("recipe"), given)
    own = [field.name for field in fields(Recipe)]
    named = {key: page.pop(key) for key in given if key not in own}
    recipe = make_recipe(page, named | overrides)
    name = page["rung"] if page["rung"] in SIZES else recipe.rung
    folder = Path(out or name_folder(recipe.corpus, name))
    distributed.on_main(check_unused)(folder)
    return recipe, folder


@distributed.on_main
def _read_begun(folder: Path, given: dict[str, Any]) -> Recipe:
    """The recipe of the run to resume.

    The rung and the corpus find the run; all else is refused, but for the rows of a step, which
    another number of processes may need. Raises `RecipeError`.
    """
    overrides = given["set"]
    if rows := overrides.keys() == {"global_batch_size"}:
        given = {key: value for key, value in given.items() if key != "set"}
    beyond = {
        f"--{key.replace('_', '-')}": value
        for key, value in given.items()
        if key not in ("rung", "corpus")
    }
    check_not_given("--resume goes on with the run's own recipe:", beyond)
    return read_begun(folder, overrides["global_batch_size"] if rows else None)


def _fill_page(recipe: str | Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """The recipe's page with what was given in its place."""
    page = read_recipe(Path(recipe)) if recipe else {}
    if {"steps", "minutes"} & set(given):
        page = leave_length_open(page)
    return page | given
