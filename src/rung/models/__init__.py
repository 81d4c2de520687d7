"""The ladder: six rungs, each a Hugging Face model, each with one idea more than the one below
it.
"""

from rung.models.base import CausalModel
from rung.models.registry import (
    DEFAULT_HEAD_SIZE,
    PLACEHOLDER_FIELDS,
    RUNGS,
    RUNGS_BY_MODEL_TYPE,
    TOKENIZER_FIELDS,
    Rung,
    build_model,
    config_fields,
    count_parameters,
    find_hidden_size,
    find_rung,
    find_rung_name,
    load,
    make_config,
    read_checked_config,
)

__all__ = [
    "DEFAULT_HEAD_SIZE",
    "PLACEHOLDER_FIELDS",
    "RUNGS",
    "RUNGS_BY_MODEL_TYPE",
    "TOKENIZER_FIELDS",
    "CausalModel",
    "Rung",
    "build_model",
    "config_fields",
    "count_parameters",
    "find_hidden_size",
    "find_rung",
    "find_rung_name",
    "load",
    "make_config",
    "read_checked_config",
]
