"""Make a chat model of a run: `rung.tune`."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rung import distributed
from rung.api.interrupts import name_saved_work
from rung.api.options import check_not_given, read_set
from rung.api.run import Run
from rung.errors import RecipeError
from rung.progress import OnProgress, for_run, ignore_progress
from rung.training.clock import now
from rung.workflows.run_folder import check_unused
from rung.workflows.tune import Tuning, read_begun_tuning
from rung.workflows.tune import tune as make_chat_model


def tune(
    run: str | Path | Run = "",
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
    **settings: Any,
) -> Run:
    """Make a chat model of a run by training it on conversations, and measure what that changed.

    >>> base = rung.train("gpt2", "my.txt", steps=2, hidden_size=32, out="base")
    >>> chat = rung.tune(base, "chats.jsonl", steps=2)
    >>> chat.folder
    PosixPath('base-chat')
    >>> sorted(chat.record["tune"]["after"]["answers"])
    ['test']

    `run` is a run, its folder, a Hugging Face model folder or a Hub id. `data` is a file of JSON
    lines (messages, Alpaca, or prompt and completion), `hf:ORG/NAME`, or `python-qa`, which is the
    default. Settings are `minutes` (5 by default), `steps`, `seed`, `preference` (a file of JSON
    lines of prompt, chosen and rejected, in the place of `data`), and fields of Hugging Face's
    TrainingArguments; `set` is a mapping of more of these.

    The chat model goes to the folder `out`, by default RUN-chat, or RUN-preferred with
    `preference`. With `resume` it goes on from its last checkpoint there. `on_progress` is called
    with each `Progress`; the minutes count from `began` by
    `time.perf_counter()`, else from the call. Raises a child of `RungError` for a mistake of the
    user, and `Interrupted` after Ctrl-C, when the work so far is saved.
    """
    began = now() if began is None else began
    plan, folder = _plan(str(run), data, settings, out, resume=resume)
    with name_saved_work(folder, f"rung.tune(out={str(folder)!r}, resume=True)"):
        if not make_chat_model(plan, folder, for_run(folder.name, on_progress), began):
            raise KeyboardInterrupt
    return Run(folder)


def _plan(
    run: str,
    data: str | Path | None,
    settings: dict[str, Any],
    out: str | Path | None,
    *,
    resume: bool,
) -> tuple[Tuning, Path]:
    """What is tuned on what, as it was begun or as it is given now, and the new run's folder."""
    if data is not None and not str(data):
        raise RecipeError(
            "DATA is an empty text, as of a variable that is not set: name a file, or leave it out"
        )
    if not run and not (resume and out):
        raise RecipeError(
            "no run is named: `rung tune RUN`, or to go on with one, `rung tune --out RUN --resume`"
        )
    given = {"data": None if data is None else str(data)} | settings
    given = {key: value for key, value in given.items() if value not in (None, "")}
    base = Path(run) if Path(run).name not in ("", "..") else Path(run).resolve()
    ending = "preferred" if "preference" in given else "chat"
    folder = Path(out) if out else base.with_name(f"{base.name}-{ending}")
    if resume:
        options = {"DATA" if key == "data" else f"--{key}": value for key, value in given.items()}
        check_not_given("--resume goes on as the run was begun:", options)
        return distributed.on_main(read_begun_tuning)(folder), folder
    train = read_set(given)
    given.pop("set", None)
    own = [field.name for field in fields(Tuning)]
    train = {key: given.pop(key) for key in list(given) if key not in own} | train
    if "preference" in given:
        given["preference"] = str(given["preference"])
    plan = Tuning(base=run, train=train, **given)
    distributed.on_main(check_unused)(folder)
    return plan, folder
