"""Check and read the files of a model's folder, and add the names that transformers 4 reads.

Some settings have other names in transformers 4 than in 5. A folder is written with both names, so
that both versions read the same model from it. Without `rope_theta`, transformers 4 silently uses a
rotation base of 10,000.
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

# A run's folder has these beside the model.
RECORD, METRICS, CHECKPOINTS = "rung.json", "metrics.jsonl", "checkpoints"
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BINARY, BINARY_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"  # of PEFT
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
# A loader may read any file that matches these patterns: each tokenizer class of transformers has
# its own file names.
FILES = (
    "*.json",
    "*.model",
    "*.txt",
    "*.safetensors",
    "pytorch_model*",
    *META_FILES,
    *TOKENIZER_FILES,
)
# These files are checked before the model is loaded. tokenizer.json is large, and is checked when
# it is loaded.
SMALL_FILES = (CONFIG, GENERATION, TOKENIZER, "special_tokens_map.json", "added_tokens.json", INDEX)


# transformers accepts values of any type for these keys, and fails later or never. A token id may
# also be a list of ids.
IDS: dict[str, tuple[type, ...]] = {f"{name}_token_id": (int,) for name in ("bos", "eos", "pad")}
VALUE_TYPES: dict[str, dict[str, tuple[type, ...]]] = {
    CONFIG: {"model_type": (str,)},
    GENERATION: {**IDS, "max_length": (int,), "temperature": (int, float)},
    TOKENIZER: {"tokenizer_class": (str,), "chat_template": (str, list, dict)},
}
# These keys make transformers read other files than those that are checked here.
ELSEWHERE = {
    CONFIG: ("configuration_files", "transformers_weights"),
    TOKENIZER: ("fast_tokenizer_files",),
}
WORDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def is_run(folder: Path) -> bool:
    """Return whether rung made the folder.

    Such a folder has a run's record, or a damaged record beside other files of a run.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return any((folder / name).exists() for name in (METRICS, CHECKPOINTS, "config.json"))
    return isinstance(record, dict) and "rung" in record


def check_folder(folder: Path) -> None:
    """Raise `RunError` where the files in `folder` may not be listed and opened.

    Without this check, the readable part of a folder would be taken for all of it.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise RunError(
            f"{folder} cannot be read: {os.strerror(errno.EACCES)}; `chmod u+rx` lets its owner in"
        )


def check_no_adapter(folder: Path) -> None:
    """Raise `RunError` where an adapter lies beside the model, or in its place.

    Whether it is loaded would depend on whether PEFT is installed. The adapter of a run is in the
    run's weights already.
    """
    if not (folder / ADAPTER).exists():
        return
    if (folder / CONFIG).exists():
        raise RunError(
            f"{folder} holds a model and an adapter, {ADAPTER}, that is not merged into it: merge "
            "them with PEFT's `merge_and_unload` and save the model, or take the adapter away"
        )
    if is_run(run := folder.absolute().parent):
        raise RunError(
            f"{folder} is the adapter alone of the run {os.path.relpath(run)}, whose weights have "
            "it: name the run"
        )
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    raise RunError(
        f"{folder} holds an adapter and no model: merge it into {base or 'its base'} with "
        "PEFT's `merge_and_unload` and save the model"
    )


def check_files(folder: Path) -> None:
    """Check the files of the model in `folder`.

    Raises `RunError` for a link that leads out of the folder, and for a settings file that is not
    valid JSON or holds a value of a wrong type.
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
    """List the files in `folder` that match the patterns, sorted and with broken links."""
    return sorted(
        {path for pattern in patterns for path in folder.glob(pattern) if not path.is_dir()}
    )


def check_inside(folder: Path, path: Path) -> None:
    """Raise `RunError` where `path`, with links followed, lies outside `folder`.

    The Hub's client downloads files to a store beside the folder, and links to them. Such links are
    allowed.
    """
    root = Path(os.path.realpath(folder))
    store = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(place) for place in (root, os.path.realpath(store))):
        raise RunError(
            f"{path} leads out of the folder, to {real}: copy into {folder} what belongs there"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises `RunError` where the file cannot be read or holds no object.
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
    """List the safetensors files that transformers reads in `folder`; there may be none.

    Raises `RunError` where the index is damaged, or names files that are missing or outside the
    folder.
    """
    whole = folder / WEIGHTS
    return [whole] if whole.is_file() else _read_index(folder / INDEX)


def has_weights(folder: Path) -> bool:
    """Return whether `folder` holds weights of any kind that transformers reads."""
    return bool(
        find_weights(folder) or (folder / BINARY).is_file() or _read_index(folder / BINARY_INDEX)
    )


def _read_index(index: Path) -> list[Path]:
    """List the files that an index of weights names; return none where there is no index."""
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
    """Read the shape of each tensor from the headers of the folder's safetensors files.

    Raises `RunError` where a file is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in find_weights(folder):
        with opening(path), safe_open(path, framework="numpy") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Raise `RunError` where the block cannot read the safetensors file at `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports a file that may not be read as missing.
        if path.exists() and not os.access(path, os.R_OK):
            raise RunError(f"{path} cannot be read: {os.strerror(errno.EACCES)}") from error
        raise RunError(
            f"{path} is damaged: {error}; copy it again, or train the model again"
        ) from error


def spell_for_transformers_4(folder: Path) -> None:
    """Add the names that transformers 4 reads to the settings of the model and the tokenizer."""
    for name, spell in ((CONFIG, _spell_config), (TOKENIZER, _spell_tokenizer)):
        if (folder / name).exists():
            before = read_json(folder / name)
            after = spell(dict(before))
            if after != before:
                text = json.dumps(after, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
                (folder / name).write_text(text, encoding="utf-8")


def _spell_config(config: dict[str, Any]) -> dict[str, Any]:
    """Add `rope_parameters` and `dtype` under their names in transformers 4."""
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
    """Replace the class and the list of special tokens by names that both versions know."""
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
