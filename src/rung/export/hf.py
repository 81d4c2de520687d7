"""Hugging Face folders, read and written one tensor at a time.

No more memory is needed than the largest tensor takes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from rung import model_files, runs
from rung.data.tokenizer_loading import check_tokenizer
from rung.errors import RunError
from rung.export.card import CARD, make_card
from rung.files import atomic_replace, write_atomically
from rung.full_disk import explain_failed_writes
from rung.model_files import CONFIG, GENERATION, INDEX, TOKENIZER_FILES, WEIGHTS
from rung.models import read_checked_config

SHARD_SIZE = "5GB"  # a file, as the Hub has them


@dataclass(frozen=True, kw_only=True)
class LazyWeights:
    """Tensors by name, loaded when they are needed.

    `meta` has each tensor on the meta device; `load` returns its values. Nothing is kept of one
    tensor when the next is loaded, pages of a memory-mapped file included.
    """

    meta: dict[str, Tensor]
    load: Callable[[str], Tensor]


def copy_folder(run: str, out: Path) -> None:
    """Write the model and the tokenizer at `run` to the folder `out`, with a model card.

    A card that the folder has is kept. Raises `RungError` where what is there is damaged.
    """
    folder = find_folder(run)
    read_checked_config(folder)
    check_tokenizer(folder)
    weights = read_weights(folder)
    with write_folder(out) as beside:
        copy_files(folder, beside, (CARD, CONFIG, GENERATION, *TOKENIZER_FILES))
        model_files.spell_for_transformers_4(beside)
        if not (folder / CARD).exists():
            write_atomically(beside / CARD, make_card(folder, out.resolve().name))
        write_weights(beside, weights)


def find_folder(run: str) -> Path:
    """Return the folder of a run or of a Hugging Face model.

    Raises `RunError` where there is none, and where a file of it leads out of it or is damaged.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise RunError(f"no run at {run}: `rung runs` lists what there is")
    model_files.check_folder(folder)
    model_files.check_no_adapter(folder)
    if not (folder / CONFIG).exists():
        raise RunError(f"{run} {runs.explain_missing_model(folder)}")
    model_files.check_files(folder)
    for name in ("tokenizer.json", model_files.TOKENIZER):
        if (folder / runs.RECORD).exists() and not (folder / name).exists():
            raise RunError(
                f"{folder} has no {name}, without which its text is read otherwise: copy it there"
            )
    return folder


@contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write to, which takes the place of `out` in the end.

    After a failure nothing is left. Raises `RunError` when something in `out` would be lost.
    """
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        what = (
            "not empty"
            if out.is_dir()
            else "a file"
            if out.exists()
            else "a link that leads nowhere"
        )
        raise RunError(f"{out} is {what}: choose another place")
    with explain_failed_writes(out), atomic_replace(out) as beside:
        beside.mkdir()
        yield beside


@contextmanager
def write_file(out: Path) -> Iterator[Path]:
    """Yield a file to write to, which takes the place of `out` in the end.

    After a failure nothing is left. Raises `RunError` when something would be lost.
    """
    if os.path.lexists(out):
        what = (
            "a folder: name a file in it" if out.is_dir() else "there already: choose another name"
        )
        raise RunError(f"{out} is {what}")
    with explain_failed_writes(out), atomic_replace(out) as beside:
        yield beside


def copy_files(folder: Path, out: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of `folder` whose names match.

    Raises `RunError` where one is a link out of it.
    """
    for path in model_files.list_files(folder, patterns):
        model_files.check_inside(folder, path)
        if path.is_file():
            place = out / path.relative_to(folder)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)


def read_weights(folder: Path) -> LazyWeights:
    """Read the tensors of a folder's safetensors, in one file or several.

    Raises `RunError` where they are missing or damaged.
    """
    like: dict[str, Tensor] = {}
    homes: dict[str, Path] = {}
    files = model_files.find_weights(folder)
    if not files:
        other = f"has no {WEIGHTS}: weights are read as safetensors"
        why = other if model_files.has_weights(folder) else runs.explain_missing_weights(folder)
        raise RunError(f"{folder} {why}")
    for path in files:
        with model_files.opening(path), safe_open(path, framework="pt") as file:
            like |= {key: file.get_tensor(key).to("meta") for key in file.keys()}  # noqa: SIM118
            homes |= dict.fromkeys(file.keys(), path)

    def load(name: str) -> Tensor:
        with safe_open(homes[name], framework="pt") as file:
            return file.get_tensor(name)

    return LazyWeights(meta=like, load=load)


def write_weights(folder: Path, weights: LazyWeights) -> None:
    """Write safetensors, split as the Hub wants them."""
    split = split_torch_state_dict_into_shards(weights.meta, max_shard_size=SHARD_SIZE)
    for filename, names in split.filename_to_tensors.items():
        _write_shard(folder / filename, names, weights)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(path: Path, names: list[str], weights: LazyWeights) -> None:
    """Write one file: the length of its header, the header, the tensors.

    The library `safetensors` would need all of them at once.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    names = sorted(
        names, key=lambda name: (-weights.meta[name].itemsize, name)
    )  # so that each is aligned
    end = 0
    for name in names:
        tensor = weights.meta[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            write_bytes(weights.load(name), file.write)


def write_bytes(tensor: Tensor, write: Callable[[memoryview], object]) -> None:
    """Pass a tensor's bytes to `write`, without a copy where they are contiguous."""
    write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in safetensors."""
    return json.loads(save({"": torch.empty(0, dtype=dtype)})[8:])[""]["dtype"]
