"""Check the values of a configuration, before anything is built or read with them.

A recipe, a folder's `config.json` and a configuration made by hand are all checked here. A value
that is refused would otherwise crash a library or C code far from its cause, or make a model that
takes minutes to build.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin

from huggingface_hub.dataclasses import type_validator
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from rung.errors import RecipeError, did_you_mean

MAX_LAYERS = 1000  # layers, or tokens of an n-gram: more than was ever trained
MAX_INT = 2**63 - 1  # the largest size of a tensor
# Integer fields and their least values. A window of one token has nothing to predict.
MIN_INTEGERS = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "num_attention_heads", "n_head", "num_hidden_layers", "n_layer"),
        1,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "vocab_size", "order"),
        1,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 2),
    **dict.fromkeys(("num_bigrams", "num_tokens", "num_suffixes", "longest_repeat"), 0),
}
LAYER_FIELDS = ("num_hidden_layers", "n_layer", "order")
PROBABILITY_FIELDS = ("dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")
POSITIVE_FIELDS = (
    *("rms_norm_eps", "layer_norm_epsilon"),
    *("rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
)
ACTIVATION_FIELDS = ("hidden_act", "activation_function")
TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    Sequence: "a list",
}
# The second is the name of the first in transformers 4.
ROPE_FIELDS = ("rope_parameters", "rope_scaling")
# What a configuration class takes without declaring it as a field.
UNDECLARED_FIELDS: dict[str, Any] = {
    "bos_token_id": int | None,
    "eos_token_id": int | list[int] | None,
    "pad_token_id": int | None,
    "rope_scaling": dict | None,
}


class RungConfig(PreTrainedConfig):
    """The base of rung's own configurations, which are checked when they are made."""

    keys_to_ignore_at_inference = ["past_key_values"]

    def __post_init__(self, **options: Any) -> None:
        super().__post_init__(**options)
        check_config(self)


def check_types(
    config: type[PreTrainedConfig], values: Mapping[str, Any], prefix: str = ""
) -> None:
    """Raise `RecipeError` for a value of the wrong type, None included, or out of its range.

    The types are those of the fields of the class `config`.
    """
    check_ranges(values, prefix)
    kinds = UNDECLARED_FIELDS | {field.name: field.type for field in fields(config)}
    for key, value in values.items():
        kind = kinds.get(config.attribute_map.get(key, key), Any)
        is_whole = kind is float and isinstance(value, int) and not isinstance(value, bool)
        try:
            type_validator(key, value, int if is_whole else kind)
        except TypeError as error:
            if value is None:
                raise RecipeError(
                    f"{prefix}{key} has no value: give one, or leave it out"
                ) from error
            example = (
                ", as in {rope_type: default, rope_theta: 500000.0}" if key in ROPE_FIELDS else ""
            )
            wanted = f"it must be {_describe_type(kind)}{example}, or left out"
            raise RecipeError(f"{prefix}{key} is {value!r:.60}: {wanted}") from error


def _describe_type(kind: Any) -> str:
    """Name a type in words, of a list also the type of its items."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [TYPE_NAMES.get(get_origin(part) or part, "") for part in parts]
    each = [
        _describe_type(*get_args(part)) for part in parts if get_origin(part) in (list, Sequence)
    ]
    return " or ".join(dict.fromkeys(filter(None, words))) + "".join(
        f", of which each is {one}" for one in each
    )


def check_ranges(values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `RecipeError` for a number of the wrong type or out of its range; None is allowed."""
    for key, value in values.items():
        if value is None:
            continue
        said = f"{prefix}{key} is {value!r:.60}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in MIN_INTEGERS and not (
            is_number and isinstance(value, int) and value >= MIN_INTEGERS[key]
        ):
            raise RecipeError(f"{said}: it must be a whole number, {MIN_INTEGERS[key]} or more")
        if key in MIN_INTEGERS and value > (most := MAX_LAYERS if key in LAYER_FIELDS else MAX_INT):
            raise RecipeError(f"{said}: it must be {most} or less")
        if key in PROBABILITY_FIELDS and not (is_number and 0 <= value <= 1):
            raise RecipeError(f"{said}: it must be a number from 0 to 1")
        if key in POSITIVE_FIELDS and not (is_number and 0 < value <= sys.float_info.max):
            raise RecipeError(f"{said}: it must be a number above 0")


def check_values(values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `RecipeError` for values that a configuration class could not compute with."""
    check_ranges(values, prefix)
    for key in ACTIVATION_FIELDS:
        if (name := values.get(key)) is not None and name not in ACT2FN:
            raise RecipeError(
                f"{prefix}{key} is {name!r}, which is no activation: "
                f"{did_you_mean(str(name), ACT2FN)}"
            )
    for key in ROPE_FIELDS:
        if isinstance(values.get(key), Mapping):
            check_ranges(values[key], f"{prefix}{key}.")
    _check_heads(values)


def check_against_tokenizer(settings: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for settings that contradict `own`, which the tokenizer decides.

    A vocab_size above the tokenizer's does no harm.
    """
    for key in own.keys() & settings.keys():
        if settings[key] != own[key] and not (key == "vocab_size" and settings[key] > own[key]):
            remedy = (
                "set tokenizer.vocab_size, and it follows"
                if key == "vocab_size"
                else "leave it out"
            )
            raise RecipeError(
                f"model.{key} is {settings[key]!r}, but the tokenizer's is {own[key]}: {remedy}"
            )


def check_config(config: PreTrainedConfig) -> None:
    """Raise `RecipeError` for values that no model of this type can have."""
    check_values(vars(config) | {"model_type": config.model_type})
    _check_rope(config)
    if getattr(config, "add_cross_attention", False):
        raise RecipeError("add_cross_attention is set, but there is no encoder here to attend to")
    if (sizes := getattr(config, "num_ngrams", None)) is not None:
        _check_ngrams(sizes, config)


def _check_heads(values: Mapping[str, Any]) -> None:
    width = values.get("hidden_size") or values.get("n_embd")
    heads = values.get("num_attention_heads") or values.get("n_head")
    if heads is None or width is None:
        return
    if width % heads:
        raise RecipeError(f"hidden_size {width} cannot be divided by {heads} attention heads")
    if heads % (shared := values.get("num_key_value_heads") or heads):
        raise RecipeError(
            f"num_attention_heads {heads} cannot be divided by {shared} key-value heads"
        )
    rotates = values.get("model_type") == "llama" or "rotary" in (values.get("swaps") or ())
    if rotates and (size := values.get("head_dim") or width // heads) % 2:
        raise RecipeError(
            f"an attention head is {size} wide (hidden_size {width} over {heads} heads): "
            "rotary positions turn pairs of channels, so it must be even"
        )


def _check_rope(config: PreTrainedConfig) -> None:
    """Raise `RecipeError` for rotary positions that llama3.py does not compute."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return
    kind = rope.get("rope_type")
    if kind not in ("default", "llama3"):
        raise RecipeError(f"rope_type {kind!r} is not known here: choose 'default' or 'llama3'")
    needed = ["rope_theta"]
    if kind == "llama3":
        needed += [
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ]
    if missing := [key for key in needed if rope.get(key) is None]:
        raise RecipeError(f"rope_parameters of rope_type {kind!r} lack {', '.join(missing)}")
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise RecipeError(
            f"rope_parameters: high_freq_factor {rope['high_freq_factor']} must be above "
            f"low_freq_factor {rope['low_freq_factor']}"
        )


def _check_ngrams(sizes: Any, config: PreTrainedConfig) -> None:
    whole = isinstance(sizes, list) and all(isinstance(size, int) and size >= 0 for size in sizes)
    if not whole or len(sizes) != config.order or sizes[0] != config.vocab_size:
        raise RecipeError(
            f"num_ngrams is {sizes!r}: it must list the n-grams of each order up to "
            f"{config.order}, of which the first is vocab_size, {config.vocab_size}"
        )
