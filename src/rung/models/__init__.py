"""The ladder: six rungs, each a Hugging Face model, each with one idea more than the one below
it.
"""

from rung.models.base import CausalModel
from rung.models.registry import (
    BESIDE,
    COMMON_FIELDS,
    HEAD_SIZE,
    LADDER,
    RUNGS,
    STAND_IN,
    TRANSFORMERS,
    Rung,
    build_model,
    config_fields,
    count_parameters,
    find_rung,
    load,
    make_config,
    match_parameters,
    name_rung,
    read_folder,
)

__all__ = [
    "BESIDE",
    "COMMON_FIELDS",
    "HEAD_SIZE",
    "LADDER",
    "RUNGS",
    "STAND_IN",
    "TRANSFORMERS",
    "CausalModel",
    "Rung",
    "build_model",
    "config_fields",
    "count_parameters",
    "find_rung",
    "load",
    "make_config",
    "match_parameters",
    "name_rung",
    "read_folder",
]
