"""Trackers by name: TensorBoard, Weights & Biases, Trackio and what else the Trainer knows, below
the run's folder.

The callbacks are the Trainer's own. What is rung's: a tracker that is missing is told before
anything is done, and what one writes stands in the run, not where the command was called.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from rung.errors import RecipeError, did_you_mean, first_line

PROJECT = "rung"  # what runs are gathered under, where a tracker gathers them
# Where each writes, by the variable that it reads; one that the user has set stands.
PLACES = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "wandb": "WANDB_DIR", "trackio": "TRACKIO_DIR"}


def list_trackers(arguments: dict[str, Any]) -> list[str]:
    """The trackers that `report_to` names; "all" is all that are installed.

    Raises `RecipeError` for a name that the Trainer does not know.
    """
    asked = arguments.get("report_to") or "none"
    names = [asked] if isinstance(asked, str) else asked
    if names in (["none"], ["all"]):
        return get_available_reporting_integrations() if names == ["all"] else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f"train.report_to is {asked!r}: it must be a name, or a list of names")
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = [*PLACES, *sorted(INTEGRATION_TO_CALLBACK.keys() - PLACES.keys())]
            raise RecipeError(f"train.report_to is {name!r}: {did_you_mean(str(name), known)}")
    return list(names)


def check_trackers(arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a tracker that is not installed, with the line that installs it."""
    for name in list_trackers(arguments):
        if (
            name in PLACES
        ):  # looked for and not imported: Trackio reads where it may write as it is imported
            if importlib.util.find_spec(name) is None:
                raise RecipeError(
                    f"train.report_to is {name!r}, which is not installed: pip install {name}"
                )
            continue
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:  # the Trainer's own words for the others
            raise RecipeError(f"train.report_to is {name!r}: {first_line(error)}") from error


@contextmanager
def report_below(folder: Path, arguments: dict[str, Any]) -> Iterator[None]:
    """While it lasts, trackers write into the run's folder, and a run of Weights & Biases ends when
    it does.

    Raises `RecipeError` for what Weights & Biases refuses, most often that nobody has logged in,
    and for a tracker that is there but cannot be imported.
    """
    names = list_trackers(arguments)
    wanted = {place: str(folder / name) for name, place in PLACES.items() if name in names}
    if "wandb" in names:
        wanted |= {
            "WANDB_DIR": str(folder),
            "WANDB_PROJECT": PROJECT,
        }  # it makes its own folder there
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    except ImportError as error:
        if not names:
            raise
        remedy = f"pip install --upgrade {' '.join(names)}"
        raise RecipeError(
            f"train.report_to is {', '.join(names)}, which does not work here ({error}): {remedy}"
        ) from error
    except Exception as error:
        if type(error).__module__.startswith("wandb"):
            raise RecipeError(
                f"wandb: {first_line(error).rstrip('.')}; or keep what it is told here: "
                f"WANDB_MODE=offline"
            ) from error
        raise
    finally:
        if "wandb" in names and "wandb" in sys.modules:
            sys.modules["wandb"].finish()
        for key in added:
            os.environ.pop(key, None)
