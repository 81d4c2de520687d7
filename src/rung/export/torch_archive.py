"""Archives of `torch.save`, read and written one tensor at a time; torch takes all at once.

An archive is a ZIP file in which nothing is compressed: a pickle of the dictionary, in which a
tensor names its storage, and the bytes of each storage in a member of its own.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rung.errors import RunError, first_line
from rung.export.hf import LazyWeights, write_bytes

ALIGNMENT = 64  # bytes, as in torch's own: a storage may be mapped into memory as it lies
STORAGE_TYPES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}


def read_consolidated(path: Path) -> LazyWeights:
    """Read the tensors of an archive that holds nothing else.

    Raises `RunError` where it is damaged.
    """

    def read() -> dict[str, Tensor]:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)

    try:
        like = {name: tensor.to("meta") for name, tensor in read().items()}
    except Exception as error:  # of torch and of pickle, over a file that may be anything
        raise RunError(f"{path}: its weights could not be read ({first_line(error)})") from error
    return LazyWeights(meta=like, load=lambda name: read()[name])


def write_consolidated(path: Path, weights: LazyWeights, aliases: Mapping[str, str]) -> None:
    """Write the tensors, and each key of `aliases` as a second name of its value's tensor.

    Raises `RunError` for numbers that are no floats of 2 or 4 bytes.
    """
    order = {
        name: _Storage.of(tensor, str(key))
        for key, (name, tensor) in enumerate(weights.meta.items())
    }
    tensors = {name: _Stored(tensor, order[name]) for name, tensor in weights.meta.items()}
    page = io.BytesIO()
    _Pickler(page, protocol=2).dump(
        tensors | {name: tensors[other] for name, other in aliases.items()}
    )
    root = path.stem
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", page.getvalue())
        archive.writestr(f"{root}/byteorder", "little")
        for name, storage in order.items():
            with archive.open(
                _member(archive, f"{root}/data/{storage.key}", weights.meta[name].nbytes), "w"
            ) as file:
                write_bytes(weights.load(name), file.write)
        archive.writestr(f"{root}/version", "3\n")


@dataclass(frozen=True)
class _Storage:
    """The storage of a tensor: its type, the member that holds it, and its size in numbers."""

    kind: type
    key: str
    size: int

    @classmethod
    def of(cls, tensor: Tensor, key: str) -> "_Storage":
        if tensor.dtype not in STORAGE_TYPES:
            raise RunError(
                f"weights of {tensor.dtype} are not written: cast them to bfloat16 or float32 first"
            )
        return cls(STORAGE_TYPES[tensor.dtype], key, tensor.numel())


@dataclass(frozen=True)
class _Stored:
    """A tensor that pickles as one whose numbers are in a storage."""

    tensor: Tensor
    storage: _Storage

    def __reduce__(self) -> tuple[Any, ...]:
        shape, stride = tuple(self.tensor.shape), self.tensor.stride()
        return torch._utils._rebuild_tensor_v2, (
            self.storage,
            0,
            shape,
            stride,
            False,
            OrderedDict(),
        )


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        """Return what stands for a storage, as torch reads it."""
        return (
            ("storage", obj.kind, obj.key, "cpu", obj.size) if isinstance(obj, _Storage) else None
        )


def _member(archive: zipfile.ZipFile, name: str, size: int) -> zipfile.ZipInfo:
    """Make a member of the archive whose bytes are aligned, by padding in its header."""
    info = zipfile.ZipInfo(name)
    info.file_size = size
    large = (
        20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0
    )  # zipfile's own field, for sizes of 64 bits
    assert archive.fp is not None
    padding = -(archive.fp.tell() + 30 + len(name) + large + 4) % ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return info
