"""Meta's `params.json` of a Llama 3, as a configuration, and the other way."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from rung import model_files
from rung.errors import RunError
from rung.models.config_checks import MAX_LAYERS
from rung.models.sizes import SIZES, rope_parameters

# The kinds of values in `params.json`: whole numbers, with the least that each may be; numbers
# above 0; and those that may be null, because Meta's code has a default.
WHOLE_NUMBERS = {
    **dict.fromkeys(("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"), 1),
    "max_position_embeddings": 2,
}
POSITIVE_NUMBERS = ("ffn_dim_multiplier", "norm_eps", "rope_theta", "rope_scaling_factor")
NULLABLE = ("n_kv_heads", "ffn_dim_multiplier")
LARGEST = 2**31 - 1
# Width and inner width of published models, and the multiplier and multiple that give it.
PUBLISHED_INNER_SIZES = {
    (4096, 14_336): (1.3, 1024),
    (8192, 28_672): (1.3, 4096),
    (2048, 8192): (1.5, 256),
    (3072, 8192): (1.0, 256),
}


def config_from_params(params: dict[str, Any], tied: bool) -> LlamaConfig:
    """Make the configuration that Meta's `params` describe.

    They do not give the factor of a scaled rotation: it is 8, as in Meta's code, unless a published
    model has this shape.
    """
    heads, scaled = params["n_heads"], params.get("use_scaled_rope", False)
    inner = _inner_size(
        params["dim"], params.get("ffn_dim_multiplier"), params.get("multiple_of", 256)
    )
    factor = (
        params.get("rope_scaling_factor", _published_factor(params["dim"], params["n_layers"]))
        if scaled
        else None
    )
    return LlamaConfig(
        vocab_size=params["vocab_size"],
        hidden_size=params["dim"],
        intermediate_size=inner,
        num_hidden_layers=params["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=params.get("n_kv_heads") or heads,
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_parameters=rope_parameters(factor)
        | {"rope_theta": float(params.get("rope_theta", 500_000.0))},
        max_position_embeddings=params.get("max_position_embeddings", _context(scaled)),
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )


def params_from_config(config: LlamaConfig) -> dict[str, Any]:
    """Make Meta's `params` of a configuration.

    Raises `RunError` where they cannot express it.
    """
    if config.model_type != "llama":
        raise RunError(
            f"a {config.model_type!r} model cannot be written in Meta's format: it holds Llama 3"
        )
    theta = config.rope_parameters["rope_theta"]
    scaled = config.rope_parameters["rope_type"] != "default"
    factor = config.rope_parameters.get("factor")
    needed = {
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": rope_parameters(factor if scaled else None) | {"rope_theta": theta},
    }
    for key, value in needed.items():
        if getattr(config, key) != value:
            raise RunError(f"{key} is {getattr(config, key)!r}: Meta's format knows only {value!r}")
    multiplier, multiple = _find_multiplier(config.hidden_size, config.intermediate_size)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": theta,
        "use_scaled_rope": scaled,
    }
    if scaled and factor != _published_factor(config.hidden_size, config.num_hidden_layers):
        params["rope_scaling_factor"] = factor
    if config.max_position_embeddings != _context(scaled):
        params["max_position_embeddings"] = config.max_position_embeddings
    return params


def _context(scaled: bool) -> int:
    return 131_072 if scaled else 8192


def _published_factor(width: int, layers: int) -> float:
    """Return the rotation's factor of the published model of this shape, else Meta's 8."""
    shapes = (size.model for size in SIZES.values() if size.rung == "llama3")
    found = (m for m in shapes if (m["hidden_size"], m["num_hidden_layers"]) == (width, layers))
    return next(
        (m["rope_parameters"]["factor"] for m in found if "factor" in m["rope_parameters"]), 8.0
    )


def _inner_size(width: int, multiplier: float | None, multiple: int) -> int:
    """Compute the width inside the MLP, as Meta's `FeedForward` does."""
    size = int(2 * 4 * width / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple * -(-size // multiple)


def _find_multiplier(width: int, inner: int) -> tuple[float, int]:
    """Find a multiplier and a multiple that give this width inside the MLP.

    Published widths have the published ones.
    """
    if (width, inner) in PUBLISHED_INNER_SIZES:
        return PUBLISHED_INNER_SIZES[width, inner]
    multiple = min(256, inner & -inner)
    multiplier = inner / int(2 * 4 * width / 3)
    while _inner_size(width, multiplier, multiple) < inner:
        multiplier = math.nextafter(multiplier, math.inf)
    return multiplier, multiple


def read_params(path: Path) -> dict[str, Any]:
    """Read a `params.json`, and check the kind of each value that is computed with."""
    params = model_files.read_json(path)
    missing = {"dim", "n_layers", "n_heads", "vocab_size"} - set(params)
    strange = sorted(
        {"vision_chunk_size", "quantization_args", "lora_args", "moe_args"} & set(params)
    )
    if missing or strange:
        what = f"no {', '.join(sorted(missing))}" if missing else ", ".join(strange)
        raise RunError(f"{path} is not of a Llama 3 that reads text alone: it has {what}")
    for key, value in params.items():
        if wanted := _find_misfit(key, value):
            raise RunError(f"{path}: {key} is {json.dumps(value):.60}, and must be {wanted}")
    return params


def _find_misfit(key: str, value: Any) -> str | None:
    """Say what a value must be and is not; None where it is, and where nobody computes with it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and key in NULLABLE:
        return None
    most = MAX_LAYERS if key == "n_layers" else LARGEST
    if key in WHOLE_NUMBERS and not (
        is_number and isinstance(value, int) and WHOLE_NUMBERS[key] <= value <= most
    ):
        return f"a whole number from {WHOLE_NUMBERS[key]} to {most}"
    if key in POSITIVE_NUMBERS and not (is_number and 0 < value <= most):
        return f"a number above 0, {most} at the most"
    return "true or false" if key == "use_scaled_rope" and not isinstance(value, bool) else None
