"""Check the weights in a folder by their headers, before memory is taken for them."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rung import model_files
from rung.errors import RunError, first_line


def check_weights(kind: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    """Raise `RunError` where weights in `folder` are missing or have the wrong shape.

    They must be those of a `kind` made by `config`.
    """
    found = model_files.read_shapes(folder)
    if not found:
        return
    try:
        with torch.device("meta"):
            model = kind(config)
    except Exception as error:  # a value that its class takes and that no model can have
        raise RunError(
            f"{folder}: no model can be made by its config.json ({first_line(error)})"
        ) from error
    base, tied = f"{model.base_model_prefix}.", model.all_tied_weights_keys
    for name, tensor in sorted(model.state_dict().items()):
        stored = name if name in found else name.removeprefix(base)  # published without the prefix
        if stored in found and found[stored] != tuple(tensor.shape):
            refuse_shape_mismatch(folder, stored, found[stored], tensor.shape)
        if stored not in found and name not in tied:
            raise RunError(
                f"{folder}: its weights lack {name}; the file is damaged or of another model"
            )


def check_parameter_count(config: PreTrainedConfig, folder: Path) -> None:
    """Raise `RunError` where a configuration asks for far more parameters than are stored.

    Names and shapes cannot be compared, for transformers renames and joins weights as it reads
    them, and quantized ones are packed.
    """
    stored = sum(map(math.prod, model_files.read_shapes(folder).values()))
    if not stored or getattr(config, "quantization_config", None):
        return
    try:
        with silence_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a value that its class takes and that no model can have
        raise RunError(
            f"{folder}: no model can be made by its config.json ({first_line(error)})"
        ) from error
    asked = sum(part.numel() for part in model.parameters())
    if asked > 2 * stored:
        raise RunError(
            f"{folder}: its config.json describes {asked:,} parameters, and its weights hold "
            f"{stored:,}: one is damaged"
        )


def refuse_shape_mismatch(
    where: str | Path, name: str, found: Iterable[int], wanted: Iterable[int]
) -> NoReturn:
    """Raise `RunError` for a weight whose shape is not what the configuration says."""
    shapes = f"is {list(found)} in its weights, {list(wanted)} by config.json"
    raise RunError(f"{where}: {name} {shapes}: one is damaged")


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence the table that transformers prints of loaded weights: `load` checks them itself."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
