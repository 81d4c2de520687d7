"""Find, load and name the runs that are served."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung import __version__
from rung.data.tokenizer import fingerprint_tokenizer
from rung.errors import RunError
from rung.ladder import LADDER, OFF_LADDER
from rung.models import load
from rung.models.base import CausalModel
from rung.models.load_options import AS_STORED, LoadOptions
from rung.runs import find_record, find_runs, is_finished, read_record

FINGERPRINT_VALUES = 64  # of each weight


@dataclass(frozen=True)
class ServedModel:
    """A run that is served: its name, its model in evaluation mode, its tokenizer, its rung.json.

    The record is empty for a folder that has no rung.json.
    """

    name: str
    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    record: dict[str, Any]


def load_served_models(
    runs: Sequence[str], options: LoadOptions = AS_STORED
) -> dict[str, ServedModel]:
    """Load runs by name: the folder's name, with as much of its path as tells two apart.

    A folder of runs stands for its finished ones. Raises `RunError` where there is nothing to
    serve.
    """
    folders = list(dict.fromkeys(folder for run in runs for folder in find_model_folders(run)))
    paths = [
        Path(folder).resolve().parts if Path(folder).exists() else tuple(folder.split("/"))
        for folder in folders
    ]
    served = {}
    for folder, name in zip(folders, shorten_paths(paths), strict=True):
        model, tokenizer = load(folder, options)
        record = find_record(Path(folder))
        served[name] = ServedModel(name, model, tokenizer, record)
    return served


def find_model_folders(run: str) -> list[str]:
    """List the model folders that `run` names, up the ladder; leave anything else to `load`."""
    folder = Path(run)
    if not folder.is_dir():
        return [run]
    if any((folder / name).exists() for name in ("config.json", "params.json")):
        return [str(folder.resolve())]
    found = [below.resolve() for below in find_runs(folder) if is_finished(below)]
    if not found:
        raise RunError(
            f"{run} holds no finished run: `rung runs {shlex.quote(str(run))}` lists what there is"
        )
    ladder = [*LADDER, *OFF_LADDER]
    return [
        str(below)
        for below in sorted(found, key=lambda below: ladder.index(read_record(below)["rung"]))
    ]


def fingerprint_model(run: ServedModel) -> str:
    """Make the `system_fingerprint`, of the model, its tokenizer and the version of rung."""
    parts = run.model.state_dict().values()
    samples = [
        part.flatten()[:: max(1, part.numel() // FINGERPRINT_VALUES)][:FINGERPRINT_VALUES]
        for part in parts
    ]
    facts = [
        __version__,
        run.model.config.to_json_string(),
        fingerprint_tokenizer(run.tokenizer),
        [sample.double().tolist() for sample in samples],
    ]
    return f"fp_{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def shorten_paths(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Cut each path to the shortest end that no other path has."""
    names = []
    for path in paths:
        lengths = range(1, len(path) + 1)
        unique = (
            size for size in lengths if sum(other[-size:] == path[-size:] for other in paths) == 1
        )
        names.append("/".join(path[-next(unique, len(path)) :]))
    return names
