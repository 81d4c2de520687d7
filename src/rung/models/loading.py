"""Load a model and its tokenizer from a folder or the Hub.

A folder may come from anywhere. It is checked before its weights are read: code in it is never run,
and no memory is taken that only its configuration asks for.
"""

import pickle
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rung import hub, model_files, runs
from rung.data.tokenizer import encodable_vocab_size, required_vocab_size
from rung.data.tokenizer_loading import fill_bos, load_foreign_tokenizer
from rung.errors import RecipeError, RunError, first_line
from rung.models.architectures import check_architecture, find_foreign_class, refuse_body
from rung.models.base import CausalModel
from rung.models.config_checks import check_config, check_types, check_values
from rung.models.foreign import ForeignForCausalLM, count_embeddings, wrap_foreign
from rung.models.load_options import AS_STORED, LoadOptions, parse_dtype, set_window
from rung.models.registry import RUNGS_BY_MODEL_TYPE
from rung.models.tensor_checks import check_tensors
from rung.models.weight_checks import (
    check_parameter_count,
    check_weights,
    refuse_shape_mismatch,
    silence_transformers,
)

ROPE_TYPES = ("default", "llama3")  # those that llama3.py computes


def load(
    path: str | Path, options: LoadOptions = AS_STORED, settings: dict[str, Any] | None = None
) -> tuple[CausalModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer: a rung in rung's own code, any other in transformers'.

    `path` is a run folder, a Hugging Face model folder or a Hub id. `settings` replace fields of
    the saved configuration. Raises `RunError` where there is no such model, it is damaged, or it
    cannot be read as the options say.
    """
    where, is_local = locate_model(path)
    is_folder = Path(where).is_dir()
    config = read_any_config(where, is_local, options.trust_remote_code)
    rung = None if has_other_rope(config) else RUNGS_BY_MODEL_TYPE.get(config.model_type)
    reader = rung.model_class if rung else find_foreign_class(where, config)
    check_architecture(where, config)
    if is_folder:
        if rung and not settings:
            check_weights(rung.model_class, config, Path(where))
        check_has_weights(Path(where))
    if is_folder and not (rung or options.trust_remote_code):
        check_parameter_count(config, Path(where))
    given = {**(settings or {}), "local_files_only": is_local, **parse_dtype(where, rung, options)}
    if rung is None:
        given["trust_remote_code"] = options.trust_remote_code
    model = read_pretrained(where, reader, given)
    if rung:
        check_tensors(model, where)
        tokenizer = load_foreign_tokenizer(where)
        if (Path(where) / runs.RECORD).exists():  # what a run's documents began with in training
            fill_bos(tokenizer)
        known = required_vocab_size(tokenizer), model.config.vocab_size
    else:
        model = wrap_foreign(where, model)
        tokenizer = load_foreign_tokenizer(where, options.trust_remote_code)
        known = encodable_vocab_size(tokenizer), count_embeddings(model)
    if known[0] > known[1]:
        raise RunError(
            f"{where}: its tokenizer has {known[0]:,} tokens and its model knows {known[1]:,}: "
            "they do not belong together"
        )
    if options.window is not None:
        set_window(model, where, options.window)
    return model.eval(), tokenizer


def read_pretrained(where: str, reader: Any, given: dict[str, Any]) -> Any:
    """Read a model with its weights by the `from_pretrained` of a class.

    Raises `RunError` where weights are damaged, missing, or of another shape.
    """
    try:
        with silence_transformers():
            report = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, report = reader.from_pretrained(where, **report, **given)
    except RecipeError as error:
        raise RunError(f"{where}: {error}") from error
    except ImportError as error:
        raise RunError(
            f"{where} needs a package that is not installed ({first_line(error)}): install it"
        ) from error
    except pickle.UnpicklingError as error:  # nothing that a pickle would run is run
        raise RunError(
            f"{where}: its weights are a pickle that is damaged, or holds more than tensors, which "
            "is never run: save them as model.safetensors"
        ) from error
    except Exception as error:  # safetensors, a damaged file
        raise RunError(
            f"{where}: its weights could not be read ({first_line(error)}); train it again"
        ) from error
    for key, found, wanted in sorted(report["mismatched_keys"]):
        refuse_shape_mismatch(where, key, found, wanted)
    if lost := sorted(report["missing_keys"]):
        if not any(key.startswith(f"{model.base_model_prefix}.") for key in lost):
            refuse_body(where, model.config)  # a head that is tied may have a bias of its own
        raise RunError(
            f"{where}: its weights lack {', '.join(lost[:3])}; the file is damaged or of another "
            "model"
        )
    return model


def load_rung(path: str | Path, what: str) -> tuple[CausalModel, PreTrainedTokenizerBase]:
    """Load a model that rung has code of its own for, as `what` needs it.

    Raises `RunError` as `load` does, and for any other model.
    """
    model, tokenizer = load(path)
    if isinstance(model, ForeignForCausalLM):
        kinds = ", ".join(RUNGS_BY_MODEL_TYPE)
        raise RunError(
            f"{path} is a {model.config.model_type!r} model: {what} needs a model that rung has "
            f"code of its own for ({kinds}); `rung eval` and `rung generate` take any"
        )
    return model, tokenizer


def locate_model(path: str | Path) -> tuple[str, bool]:
    """Find a model: its folder or Hub id, and whether it is read without asking the Hub.

    Raises `RunError` where there is none, or only a part of one.
    """
    where = str(Path(path).expanduser()) if str(path).startswith("~") else str(path)
    folder = Path(where)
    if not folder.is_dir():
        if not hub.is_hub_id(where):
            raise RunError(f"no run at {where}: `rung runs` lists what there is")
        return where, not hub.is_reachable(where)
    model_files.check_folder(folder)
    if not (folder / model_files.CONFIG).exists():
        model_files.check_no_adapter(folder)
        raise RunError(f"{where} {runs.explain_missing_model(folder)}")
    return where, True


def read_config(where: str | Path, local_files_only: bool = True) -> PreTrainedConfig:
    """Read the configuration in a folder or of a repository of the Hub.

    Raises `RunError` where it cannot be read, or rung's own code for such a model cannot follow it.
    """
    config = read_any_config(where, local_files_only)
    if has_other_rope(config):
        try:
            check_config(config)
        except RecipeError as error:
            raise RunError(f"{where} could not be read: {first_line(error)}") from error
    return config


def has_other_rope(config: PreTrainedConfig) -> bool:
    """Return whether a Llama turns its positions in a way that only transformers' code computes."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    return config.model_type == "llama" and kind in ROPE_INIT_FUNCTIONS and kind not in ROPE_TYPES


def read_any_config(
    where: str | Path, local_files_only: bool = True, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Read the configuration of any model, as `read_config` does."""
    folder = Path(where) if Path(where).is_dir() else None
    if folder:
        model_files.check_files(folder)
        model_files.check_no_adapter(folder)
    try:
        if folder:
            _check_config_values(model_files.read_json(folder / model_files.CONFIG))
        config = AutoConfig.from_pretrained(
            where, local_files_only=local_files_only, trust_remote_code=trust_remote_code
        )
        if config.model_type in RUNGS_BY_MODEL_TYPE and not has_other_rope(config):
            check_config(config)
    except Exception as error:  # no network, no such repository, a value that its class refuses
        unreachable = local_files_only and not folder
        why = (
            "it is no folder here, and the Hub cannot be reached"
            if unreachable
            else first_line(error)
        )
        if "custom code" in str(error):
            why = hub.CODE_IS_NOT_RUN
        raise RunError(f"{where} could not be read: {why}") from error
    return config


def _check_config_values(values: dict[str, Any]) -> None:
    """Check a rung's `config.json`, before its class computes with the values."""
    if rung := RUNGS_BY_MODEL_TYPE.get(values.get("model_type", "")):
        check_types(rung.config_class, values)
        check_values(values)


def read_checked_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration in a folder, and check a rung's weights against it.

    Of the weights only the headers are read. Raises `RunError` where something is damaged.
    """
    config = read_config(folder)
    if rung := RUNGS_BY_MODEL_TYPE.get(config.model_type):
        check_weights(rung.model_class, config, folder)
    return config


def check_has_weights(folder: Path) -> None:
    """Raise `RunError` for a configuration without weights, as a run that was stopped has."""
    if not model_files.has_weights(folder):
        raise RunError(f"{folder} {runs.explain_missing_weights(folder)}")
