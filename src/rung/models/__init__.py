"""The ladder: six rungs, each a Hugging Face model with one idea more than the one below it."""

from rung.models.base import CausalModel
from rung.models.loading import load, read_checked_config
from rung.models.registry import (
    RUNGS,
    Rung,
    build_model,
    config_fields,
    count_hidden_parameters,
    count_parameters,
    find_hidden_size,
    find_rung,
    find_rung_name,
    make_config,
)

__all__ = [
    "RUNGS",
    "CausalModel",
    "Rung",
    "build_model",
    "config_fields",
    "count_hidden_parameters",
    "count_parameters",
    "find_hidden_size",
    "find_rung",
    "find_rung_name",
    "load",
    "make_config",
    "read_checked_config",
]
