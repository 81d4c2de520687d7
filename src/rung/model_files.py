"""The files of a model's folder: none leads out of it or is damaged, and all that is written opens
in transformers 4.

Names changed between transformers 4 and 5. A folder is written with both, so that either reads the
same model out of it; without `rope_theta` transformers 4 takes 10,000 for any other base of the
rotation, and says nothing.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rung.errors import RunError

# A run has these beside its model.
RECORD, METRICS, CHECKPOINTS = "rung.json", "metrics.jsonl", "checkpoints"
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BINARY, BINARY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TEMPLATES = "additional_chat_templates/*.jinja"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    TEMPLATES,
)
META_FILES = ("params.json", "consolidated.*.pth")
# All that somebody may read: each tokenizer of transformers has names of its own for its files.
FILES = (
    "*.json",
    "*.model",
    "*.txt",
    "*.safetensors",
    "pytorch_model*",
    *META_FILES,
    *TOKENIZER_FILES,
)
# Read whole before the model is: the tokenizer's own, which is large, is looked at where it is
# loaded.
SMALL_FILES = (CONFIG, GENERATION, TOKENIZER, "special_tokens_map.json", "added_tokens.json", INDEX)


# What transformers takes whatever it is, and fails over later or never.
IDS: dict[str, tuple[type, ...]] = {
    f"{name}_token_id": (int,) for name in ("bos", "eos", "pad")
}  # or a list of them
VALUE_TYPES: dict[str, dict[str, tuple[type, ...]]] = {
    CONFIG: {"model_type": (str,)},
    GENERATION: {**IDS, "max_length": (int,), "temperature": (int, float)},
    TOKENIZER: {"tokenizer_class": (str,), "chat_template": (str, list, dict)},
}
# Keys by which transformers reads other files in the place of those that are looked at here.
ELSEWHERE = {
    CONFIG: ("configuration_files", "transformers_weights"),
    TOKENIZER: ("fast_tokenizer_files",),
}
WORDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def is_run(folder: Path) -> bool:
    """Whether rung made the folder: it has a run's record, or a damaged one beside what a run
    has.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return any((folder / name).exists() for name in (METRICS, CHECKPOINTS, "config.json"))
    return isinstance(record, dict) and "rung" in record


def check_folder(folder: Path) -> None:
    """Raise `RunError` where the files in `folder` may not be listed and opened: part of them would
    be read as all.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise RunError(
            f"{folder} cannot be read: {os.strerror(errno.EACCES)}; `chmod u+rx` lets its owner in"
        )


def check_files(folder: Path) -> None:
    """Raise `RunError` where a file of the model in `folder` is a link to elsewhere, or no JSON
    where it must be.
    """
    check_folder(folder)
    for path in list_files(folder, FILES):
        check_inside(folder, path)
    for name in SMALL_FILES:
        if os.path.lexists(folder / name):
            _check_facts(folder / name, read_json(folder / name))


def _check_facts(path: Path, facts: dict[str, Any]) -> None:
    for key in ELSEWHERE.get(path.name, ()):
        if facts.get(key) is not None:
            raise RunError(
                f"{path}: {key} would have other files read than the model's own: leave it out"
            )
    for key, kinds in VALUE_TYPES.get(path.name, {}).items():
        value = facts.get(key)
        values = value if key in IDS and isinstance(value, list) else [value]
        if value is not None and not all(
            isinstance(one, kinds) and not isinstance(one, bool) for one in values
        ):
            wanted = " or ".join(WORDS[kind] for kind in kinds)
            raise RunError(f"{path} is damaged: {key} is {value!r:.60}, and must be {wanted}")


def list_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """What is in `folder` under these names, in order, links that lead nowhere among them."""
    return sorted(
        {path for pattern in patterns for path in folder.glob(pattern) if not path.is_dir()}
    )


def check_inside(folder: Path, path: Path) -> None:
    """Raise `RunError` where `path`, links followed, does not lie in `folder`.

    What the Hub's client has downloaded are links to its store beside the folder: they lie in it,
    too.
    """
    root = Path(os.path.realpath(folder))
    store = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(place) for place in (root, os.path.realpath(store))):
        raise RunError(
            f"{path} leads out of the folder, to {real}: copy into {folder} what belongs there"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises `RunError` where it holds none.
    """
    if not path.is_file():
        raise RunError(
            f"{path} is {'a folder' if path.is_dir() else 'no file'}: it must be a JSON file"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged: it is not UTF-8 (byte {error.start:,})") from error
    except (ValueError, RecursionError) as error:
        why = "it is empty" if path.stat().st_size == 0 else f"it is no JSON ({error})"
        raise RunError(f"{path} is damaged: {why}") from error
    if not isinstance(facts, dict):
        raise RunError(
            f"{path} is damaged: it holds {json.dumps(facts):.20}, and must hold names and values "
            f"in {{}}"
        )
    return facts


def find_weights(folder: Path) -> list[Path]:
    """The files of safetensors that transformers reads in `folder`; none where it has other
    weights.

    Raises `RunError` where the index is damaged, or names files that are not there or not in the
    folder.
    """
    whole = folder / WEIGHTS
    return [whole] if whole.is_file() else _read_index(folder / INDEX)


def has_weights(folder: Path) -> bool:
    """Whether there are weights of any kind that transformers reads in `folder`."""
    return bool(
        find_weights(folder) or (folder / BINARY).is_file() or _read_index(folder / BINARY_INDEX)
    )


def _read_index(index: Path) -> list[Path]:
    """The files that an index says the tensors are in; none where there is no index."""
    folder = index.parent
    if not os.path.lexists(index):
        return []
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise RunError(f"{index} is damaged: its weight_map must name the file of each tensor")
    files = sorted({folder / name for name in places.values()})
    for file in files:
        if file.parent != folder:
            raise RunError(f"{index} names {str(file)!r}: weights must lie in the folder itself")
        check_inside(folder, file)
        if not file.is_file():
            raise RunError(f"{index} names {file.name}, which is not there")
    return files


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the folder's safetensors, of which only the headers are read.

    Raises `RunError` where a file is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in find_weights(folder):
        with opening(path), safe_open(path, framework="numpy") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Raise `RunError` where the safetensors in `path` cannot be read."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if path.exists() and not os.access(path, os.R_OK):  # safetensors says that it is not there
            raise RunError(f"{path} cannot be read: {os.strerror(errno.EACCES)}") from error
        raise RunError(
            f"{path} is damaged: {error}; copy it again, or train the model again"
        ) from error


def spell_for_transformers_4(folder: Path) -> None:
    """Add the names that transformers 4 reads to the settings of the model and the tokenizer in
    `folder`.
    """
    for name, spell in ((CONFIG, _spell_config), (TOKENIZER, _spell_tokenizer)):
        if (folder / name).exists():
            before = read_json(folder / name)
            after = spell(dict(before))
            if after != before:
                text = json.dumps(after, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
                (folder / name).write_text(text, encoding="utf-8")


def _spell_config(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` and `dtype` under the names of before, too."""
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope and not config.get("rope_scaling"):
        scaled = rope.get("rope_type", "default") != "default"
        config["rope_theta"] = rope["rope_theta"]
        config["rope_scaling"] = (
            {key: rope[key] for key in rope if key != "rope_theta"} if scaled else None
        )
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    return config


def _spell_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """The class and the list of special tokens by names that both know."""
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
