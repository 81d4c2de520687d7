"""What is in a model's folder, before weights are read: a configuration, and whether the weights
are of such a model.

A folder may come from anywhere. Code in it is never run, and no memory is taken that only its
configuration asks for.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from rung import hub, model_files, runs
from rung.errors import RunError
from rung.models.config_checks import check_config, check_types, check_values

ADAPTER = "adapter_config.json"
MAX_CHECKED_TOKENS = (
    2**24
)  # of an indexed text that is read as it is loaded: 200 MB, a fraction of a second


def locate_model(path: str | Path) -> tuple[str, bool]:
    """Where a model is, a folder or a Hub id, and whether only this machine is asked for it.

    Raises `RunError` where there is none, or a folder has a part of one.
    """
    where = str(Path(path).expanduser()) if str(path).startswith("~") else str(path)
    folder = Path(where)
    if not folder.is_dir():
        if hub.is_place(where) or "/" not in where:
            raise RunError(f"no run at {where}: `rung runs` lists what there is")
        return where, not hub.answers(where)
    model_files.check_folder(folder)
    if not (folder / model_files.CONFIG).exists():
        raise RunError(f"{where} {runs.say_why_no_model(folder)}")
    return where, True


def read_config(
    where: str | Path, known: Mapping[str, Any], local_files_only: bool = True
) -> PreTrainedConfig:
    """The configuration in a folder, or of a repository of the Hub; `known` are the rungs by their
    kind of model.

    Raises `RunError` where it cannot be read.
    """
    folder = Path(where) if Path(where).is_dir() else None
    if folder:
        model_files.check_files(folder)
        check_no_adapter(folder)
    try:
        if (
            folder
            and (values := model_files.read_json(folder / model_files.CONFIG)).get("model_type")
            in known
        ):
            check_types(
                known[values["model_type"]].config_class, values
            )  # before the class computes with them
            check_values(values)
        config = AutoConfig.from_pretrained(
            where, local_files_only=local_files_only, trust_remote_code=False
        )
        if config.model_type in known:
            check_config(config)
    except Exception as error:  # no network, no such repository, a value that its class refuses
        unreachable = local_files_only and not folder
        why = (
            "it is no folder here, and the Hub cannot be reached"
            if unreachable
            else first_line(error)
        )
        if "custom code" in str(error):
            why = "it comes with code of its own, which is never run here"
        raise RunError(f"{where} could not be read: {why}") from error
    return config


def check_has_weights(folder: Path) -> None:
    """Raise `RunError` where there is a configuration and no weights: a run that was stopped, or a
    part of a model.
    """
    if not model_files.has_weights(folder):
        raise RunError(f"{folder} {runs.say_why_no_weights(folder)}")


def check_no_adapter(folder: Path) -> None:
    """Raise `RunError` where an adapter lies beside the model: with PEFT it would be loaded,
    without it left out.
    """
    if (folder / ADAPTER).exists():
        raise RunError(
            f"{folder} holds a model and an adapter, {ADAPTER}, that is not merged into it: merge "
            f"them with PEFT's "
            "`merge_and_unload` and save the model, or take the adapter away"
        )


def check_weights(kind: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    """Raise `RunError` where the safetensors in `folder` lack a weight of such a model, or one has
    another shape.
    """
    found = model_files.read_shapes(folder)
    if not found:
        return
    try:
        with torch.device("meta"):
            model = kind(config)
    except Exception as error:  # a value that its class takes and that no model can have
        raise RunError(
            f"{folder}: no model is as config.json says ({first_line(error)})"
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


def check_tensors(model: PreTrainedModel, where: str) -> None:
    """Raise `RunError` where a model's numbers are none, or its tables name a token or a row that
    there is not.

    What such a model said would be no figure, and a row that there is not is a crash.
    """
    check = {
        "rung-bigram": _find_bad_pair,
        "rung-ngram": _find_bad_ngram,
        "rung-infinigram": _find_bad_suffix,
    }
    if why := check.get(model.config.model_type, _find_bad_weight)(model):
        raise RunError(f"{where}: its {why}; copy them again, or train it again")


def _find_bad_weight(model: PreTrainedModel) -> str | None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            for bound in tensor.aminmax():  # no memory but these two: of NaN both are NaN
                if not bound.isfinite():
                    return f"weights are damaged: in {name} there is {bound.item()}"
    return None


def _find_bad_pair(model: PreTrainedModel) -> str | None:
    first, tokens, counts = (
        model.get_buffer("first"),
        model.get_buffer("tokens"),
        model.get_parameter("counts"),
    )
    if not _rises(first, len(tokens)):
        return "pairs are damaged: what follows a token is out of order"
    if not _is_within(tokens, model.config.vocab_size):
        return f"pairs are damaged: a token is not among the {model.config.vocab_size:,}"
    before = torch.arange(len(first) - 1).repeat_interleave(first.diff())
    contexts = model.get_parameter("contexts").double()
    total = torch.zeros_like(contexts).index_add_(0, before, counts.double())
    if not bool((counts >= 0).all()) or not torch.allclose(
        total, contexts, rtol=1e-3
    ):  # float32 rounds beyond 2^24
        return "pairs are damaged: their counts do not add up"
    return None


def _find_bad_ngram(model: PreTrainedModel) -> str | None:
    sizes = getattr(model.config, "num_ngrams", None) or []
    for order, size in enumerate(sizes, start=1):
        why = None
        if model.get_parameter(f"log10_probability_{order}").isnan().any():
            why = "a probability is no number"
        if order < len(sizes) and model.get_parameter(f"log10_backoff_{order}").isnan().any():
            why = "a back-off weight is no number"
        if order > 1 and not _is_within(
            model.get_buffer(f"tokens_{order}"), model.config.vocab_size
        ):
            why = f"a token is not among the {model.config.vocab_size:,}"
        if order > 1 and not _rises(model.get_buffer(f"first_{order - 1}"), size):
            why = "what follows a history is out of order"
        if why:
            return f"{order}-grams are damaged: {why}"
    return None


def _find_bad_suffix(model: PreTrainedModel) -> str | None:
    """Of a large text only the small tables are looked at: the others stay on the disk until they
    are needed.
    """
    text, unigrams = dict(model.named_buffers()), model.get_parameter("unigrams").double()
    tokens, suffixes, changes = (text[f"text.{name}"] for name in ("tokens", "suffixes", "changes"))
    first = text["text.first"]
    if not bool(((unigrams >= 0) & (unigrams <= 1)).all()) or abs(unigrams.sum().item() - 1) > 0.01:
        return "text is damaged: the shares of its tokens are no probabilities"
    discounts = model.config.discounts or []
    if not all(isinstance(one, int | float) and 0 <= one <= 1 for one in discounts):
        return (
            f"text is damaged: its discounts are {discounts!r:.60}, and must be numbers from 0 to 1"
        )
    if not _rises(first, len(suffixes)) or not _rises(
        text["text.first_change"], max(0, len(suffixes) - 1)
    ):
        return "text is damaged: its index is out of order"
    if len(tokens) > MAX_CHECKED_TOKENS:
        return None
    if not _is_within(tokens[:-1], model.config.vocab_size):
        return f"text is damaged: a token is not among the {model.config.vocab_size:,}"
    begins = torch.arange(len(first) - 1).repeat_interleave(first.diff())
    is_sorted = _is_within(suffixes, len(tokens) - 1) and torch.equal(
        tokens[suffixes].long(), begins
    )
    if not is_sorted or not _is_within(changes, len(suffixes)):
        return "text is damaged: its index points elsewhere"
    return None


def _is_within(numbers: Tensor, size: int) -> bool:
    return not len(numbers) or 0 <= int(numbers.min()) <= int(numbers.max()) < size


def _rises(numbers: Tensor, end: int) -> bool:
    """Whether they go from 0 to `end` without a step back."""
    return (
        int(numbers[0]) == 0
        and int(numbers[-1]) == end
        and not bool((numbers[1:] < numbers[:-1]).any())
    )


def refuse_shape_mismatch(
    where: str | Path, name: str, found: Iterable[int], wanted: Iterable[int]
) -> NoReturn:
    """Raise `RunError` about a weight that is not shaped as the configuration says."""
    sizes = f"is {list(found)} in its weights, {list(wanted)} by config.json"
    raise RunError(f"{where}: {name} {sizes}: one is damaged")


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence the loading table that transformers prints; who loads reports what matters itself."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def first_line(error: Exception) -> str:
    """What an error says first; the line after it, too, where the first ends in a colon."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])
