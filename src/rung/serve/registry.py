"""The runs that are served: found, loaded, and named for their clients."""

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
from rung.runs import find_record, find_runs, is_finished, read_record

SEEN = 64  # numbers of each weight, that a model is known by


@dataclass(frozen=True)
class ServedModel:
    """A run that is served: its name to clients, its model in evaluation mode, its tokenizer, and
    its rung.json (empty for a plain folder).
    """

    name: str
    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    record: dict[str, Any]


def load_served_models(runs: Sequence[str]) -> dict[str, ServedModel]:
    """By name: the folder's own, with as much of its path as tells two apart.

    A folder that holds runs stands for all that are finished. Raises `RunError` where there is
    nothing to serve.
    """
    places = list(dict.fromkeys(place for run in runs for place in find_places(run)))
    paths = [
        Path(place).resolve().parts if Path(place).exists() else tuple(place.split("/"))
        for place in places
    ]
    served = {}
    for place, name in zip(places, tell_apart(paths), strict=True):
        model, tokenizer = load(place)
        record = find_record(Path(place))
        served[name] = ServedModel(name, model, tokenizer, record)
    return served


def find_places(run: str) -> list[str]:
    """The folders of models that `run` names, up the ladder; anything else is left to `load`."""
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


def identify(run: ServedModel) -> str:
    """A name for what answers: it changes with the model, its tokenizer, or the version of rung."""
    parts = run.model.state_dict().values()
    spread = [
        part.flatten()[:: max(1, part.numel() // SEEN)][:SEEN].double().tolist() for part in parts
    ]
    facts = [
        __version__,
        run.model.config.to_json_string(),
        fingerprint_tokenizer(run.tokenizer),
        spread,
    ]
    return f"fp_{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def tell_apart(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The end of each path, as long as tells it from all others."""
    names = []
    for path in paths:
        lengths = range(1, len(path) + 1)
        unique = (
            size for size in lengths if sum(other[-size:] == path[-size:] for other in paths) == 1
        )
        names.append("/".join(path[-next(unique, len(path)) :]))
    return names
