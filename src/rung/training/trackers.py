"""Trackers by name: TensorBoard, Weights & Biases, Trackio and others that the Trainer knows.

The Trainer brings their callbacks. A missing tracker is reported before anything is done, and a
tracker writes into the run's folder, not where the command was called.
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

# Trackers group runs by project.
PROJECT = "rung"
# The variable that names the folder a tracker writes to. A value that the user has set is kept.
FOLDER_VARIABLES = {
    "tensorboard": "TENSORBOARD_LOGGING_DIR",
    "wandb": "WANDB_DIR",
    "trackio": "TRACKIO_DIR",
}


def list_trackers(arguments: dict[str, Any]) -> list[str]:
    """List the trackers that `report_to` names; "all" are those that are installed.

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
            known = [
                *FOLDER_VARIABLES,
                *sorted(INTEGRATION_TO_CALLBACK.keys() - FOLDER_VARIABLES.keys()),
            ]
            raise RecipeError(f"train.report_to is {name!r}: {did_you_mean(str(name), known)}")
    return list(names)


def check_trackers(arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a tracker that is not installed, with the line that installs it."""
    for name in list_trackers(arguments):
        # Trackio decides where it writes when it is imported, so these are only looked for.
        if name in FOLDER_VARIABLES:
            if importlib.util.find_spec(name) is None:
                raise RecipeError(
                    f"train.report_to is {name!r}, which is not installed: pip install {name}"
                )
            continue
        # The others say themselves what they lack.
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise RecipeError(f"train.report_to is {name!r}: {first_line(error)}") from error


@contextmanager
def report_into(folder: Path, arguments: dict[str, Any]) -> Iterator[None]:
    """Let trackers write into the run's folder inside the context; then end Weights & Biases' run.

    Raises `RecipeError` for what Weights & Biases refuses, most often because nobody has logged in,
    and for a tracker that is installed but cannot be imported.
    """
    names = list_trackers(arguments)
    wanted = {
        place: str(folder / name) for name, place in FOLDER_VARIABLES.items() if name in names
    }
    # Weights & Biases makes a folder of its own there.
    if "wandb" in names:
        wanted |= {"WANDB_DIR": str(folder), "WANDB_PROJECT": PROJECT}
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
                f"wandb: {first_line(error).rstrip('.')}; or keep its data here with "
                f"WANDB_MODE=offline"
            ) from error
        raise
    finally:
        if "wandb" in names and "wandb" in sys.modules:
            sys.modules["wandb"].finish()
        for key in added:
            os.environ.pop(key, None)
