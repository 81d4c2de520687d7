"""What is in a model's folder, before weights are read: a configuration, and whether the weights are of such a model.

A folder may come from anywhere. Code in it is never run, and no memory is taken that only its configuration asks for.
"""

from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from rung import model_files, runs
from rung.errors import RunError
from rung.models.checks import check_config, check_values


def read_config(where: str | Path, known: Container[str], local_files_only: bool = True) -> PreTrainedConfig:
    """The configuration in a folder, or of a repository of the Hub; `known` are the kinds of model that are rungs.

    Raises `RunError` where it cannot be read.
    """
    folder = Path(where) if Path(where).is_dir() else None
    if folder:
        model_files.check_files(folder)
    try:
        if folder and (values := model_files.read_json(folder / model_files.CONFIG)).get("model_type") in known:
            check_values(values)  # before the class computes with them
        config = AutoConfig.from_pretrained(where, local_files_only=local_files_only, trust_remote_code=False)
        if config.model_type in known:
            check_config(config)
        return config
    except Exception as error:  # no network, no such repository, a value that its class refuses
        unreachable = local_files_only and not folder
        why = "it is no folder here, and the Hub cannot be reached" if unreachable else say_in_a_line(error)
        if "custom code" in str(error):
            why = "it comes with code of its own, which is never run here"
        raise RunError(f"{where} could not be read: {why}") from error


def check_weights(kind: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    """Raise `RunError` where the safetensors in `folder` lack a weight of such a model, or one has another shape."""
    if not model_files.has_weights(folder):
        raise RunError(f"{folder} {runs.say_why_no_weights(folder)}")
    found = model_files.read_shapes(folder)
    if not found:
        return
    try:
        with torch.device("meta"):
            model = kind(config)
    except Exception as error:  # a value that its class takes and that no model can have
        raise RunError(f"{folder}: no model is as config.json says ({say_in_a_line(error)})") from error
    base, tied = f"{model.base_model_prefix}.", model.all_tied_weights_keys
    for name, tensor in sorted(model.state_dict().items()):
        stored = name if name in found else name.removeprefix(base)  # published without the prefix
        if stored in found and found[stored] != tuple(tensor.shape):
            refuse_shape(folder, stored, found[stored], tensor.shape)
        if stored not in found and name not in tied:
            raise RunError(f"{folder}: its weights lack {name}; the file is damaged or of another model")


def check_tables(model: PreTrainedModel, where: str) -> None:
    """Raise `RunError` where n-grams of a fixed order name a token or a row that there is not, or cost no number."""
    sizes = getattr(model.config, "num_ngrams", None) or []
    for order, size in enumerate(sizes, start=1):
        why = None
        if model.get_parameter(f"log10_probability_{order}").isnan().any():
            why = "a probability is no number"
        if order > 1:
            tokens = model.get_buffer(f"tokens_{order}")
            if size and not 0 <= int(tokens.min()) <= int(tokens.max()) < model.config.vocab_size:
                why = f"a token is not among the {model.config.vocab_size:,}"
            first = model.get_buffer(f"first_{order - 1}")
            if int(first[0]) != 0 or int(first[-1]) != size or bool((first[1:] < first[:-1]).any()):
                why = "what follows a history is out of order"
        if why:
            raise RunError(f"{where}: its {order}-grams are damaged: {why}; copy them again, or train it again")


def refuse_shape(where: str | Path, name: str, found: Iterable[int], wanted: Iterable[int]) -> NoReturn:
    """Raise `RunError` about a weight that is not shaped as the configuration says."""
    sizes = f"is {list(found)} in its weights, {list(wanted)} by config.json"
    raise RunError(f"{where}: {name} {sizes}: one is damaged")


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the loading table that transformers prints; who loads reports what matters itself."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def say_in_a_line(error: Exception) -> str:
    """What an error says first; the line after it, too, where the first ends in a colon."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])
