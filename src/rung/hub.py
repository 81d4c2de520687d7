"""The Hub of Hugging Face: which names are asked of it, and whether it answers at all."""

import re
from pathlib import Path
from typing import Literal

PATIENCE = 5.0  # seconds
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
HERE = ("/", ".", "~", "runs/")


def is_place(name: str) -> bool:
    """Whether a name means a place on this machine, there or not: the Hub is never asked for
    one.
    """
    return Path(name).exists() or name.startswith(HERE) or not REPOSITORY.fullmatch(name)


def answers(repository: str, kind: Literal["model", "dataset"] = "model") -> bool:
    """Whether the Hub says anything about a repository, be it no: one try, for without a network
    the libraries that load from it try again for most of a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=PATIENCE)
    except HfHubHTTPError:
        return True
    except (
        Exception
    ):  # no network, no name service, a firewall, offline mode: each client has its own kinds
        return False
    return True
