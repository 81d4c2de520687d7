"""The Hugging Face Hub: which names may be on it, and whether it can be reached."""

import os
import re
from pathlib import Path
from typing import Literal

TIMEOUT_SECONDS = 5.0
REPOSITORY_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MIRROR_VARIABLE = "RUNG_HUB_MIRROR"
LOCAL_PREFIXES = ("/", ".", "~", "runs/")


def is_local_path(name: str) -> bool:
    """Whether a name means a path on this machine, be it there or not, and nothing on the Hub."""
    return (
        Path(name).exists()
        or name.startswith(LOCAL_PREFIXES)
        or not REPOSITORY_NAME.fullmatch(name)
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is OWNER/NAME on the Hub, and no path on this machine."""
    return "/" in name and not is_local_path(name)


def is_reachable(repository: str, kind: Literal["model", "dataset"] = "model") -> bool:
    """Whether the Hub answers anything about a repository, be it that it has none.

    It is asked once: without a network, the libraries that load from it try for most of a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=TIMEOUT_SECONDS)
    except HfHubHTTPError:
        return True
    # No network, no name service, a firewall, offline mode: each client has its own errors.
    except Exception:
        return False
    return True


def find_dataset_commit(repository: str) -> str:
    """Return the commit of a data set on the Hub.

    Raises the errors of `huggingface_hub` where it is not found or not reached.
    """
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(repository, timeout=TIMEOUT_SECONDS).sha)


def find_mirror(repository: str) -> Path | None:
    """Return the folder to read in the place of a repository, or None where there is none.

    It is `$RUNG_HUB_MIRROR/OWNER/NAME`.
    """
    folder = os.environ.get(MIRROR_VARIABLE)
    return Path(folder) / repository if folder and (Path(folder) / repository).is_dir() else None
