"""Tell names on the Hugging Face Hub from paths, and find out whether the Hub can be reached."""

import os
import re
from pathlib import Path
from typing import Literal

TIMEOUT_SECONDS = 5.0
REPOSITORY_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MIRROR_VARIABLE = "RUNG_HUB_MIRROR"
CODE_IS_NOT_RUN = (
    "it comes with code of its own, which is run only where you trust it and say so: "
    "--trust-remote-code"
)
LOCAL_PREFIXES = ("/", ".", "~", "runs/")


def is_local_path(name: str) -> bool:
    """Return whether a name is a path on this machine, existing or not, and not a Hub name."""
    return (
        Path(name).exists()
        or name.startswith(LOCAL_PREFIXES)
        or not REPOSITORY_NAME.fullmatch(name)
    )


def is_hub_id(name: str) -> bool:
    """Return whether a name is OWNER/NAME on the Hub and not a path on this machine."""
    return "/" in name and not is_local_path(name)


def is_reachable(repository: str, kind: Literal["model", "dataset"] = "model") -> bool:
    """Return whether the Hub answers a request for a repository, even with an error.

    The Hub is asked once, because the libraries that load from it retry for most of a minute when
    there is no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=TIMEOUT_SECONDS)
    except HfHubHTTPError:
        return True
    # Each client has its own errors for no network, no name service, a firewall or offline mode.
    except Exception:
        return False
    return True


def find_dataset_commit(repository: str) -> str:
    """Return the commit of a data set on the Hub.

    Raises the errors of `huggingface_hub` where the data set is not found or the Hub is not
    reached.
    """
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(repository, timeout=TIMEOUT_SECONDS).sha)


def find_mirror(repository: str) -> Path | None:
    """Return the local folder that replaces a repository, or None where there is none.

    The folder is `$RUNG_HUB_MIRROR/OWNER/NAME`.
    """
    folder = os.environ.get(MIRROR_VARIABLE)
    return Path(folder) / repository if folder and (Path(folder) / repository).is_dir() else None
