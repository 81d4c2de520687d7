"""Meta's own format of Llama 3: `params.json`, `consolidated.NN.pth`, `tokenizer.model`.

Names differ, and the order of channels: Meta turns neighbours (2i, 2i + 1), Hugging Face (i, i +
K/2), so the rows of the queries' and keys' weights stand in another order. A large model lies in
several files, each with a part of every matrix (Shoeybi et al. 2019). What Meta's `ModelArgs` have
no word for, the context and a factor other than the published, is written beside and ignored by its
code.
"""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig

from rung import model_files
from rung.data.tokenizer import load_tokenizer
from rung.errors import RunError, TokenizerError
from rung.export.hf import Weights, copy_files, find_folder, read_weights, write_weights, writing
from rung.export.tiktoken import LLAMA3, LLAMA31, read_tiktoken, write_tiktoken
from rung.export.torch_archive import read_consolidated, write_consolidated
from rung.files import write_atomically
from rung.model_files import TOKENIZER_FILES
from rung.models import read_checked_config
from rung.models.config_checks import MAX_LAYERS, check_config, check_values
from rung.models.llama3 import LlamaForCausalLM
from rung.models.loading import first_line
from rung.models.sizes import SIZES, rope_parameters

logger = logging.getLogger(__name__)

PARAMS, TOKENIZER, CONSOLIDATED = "params.json", "tokenizer.model", "consolidated.{:02d}.pth"
NAMES = {  # ours: Meta's
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
HEAD, EMBEDDING = "output.weight", "tok_embeddings.weight"
# Whole numbers in `params.json`, and the least that each may be; numbers above 0; what Meta's code
# has a default for.
WHOLE = {
    **dict.fromkeys(("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"), 1),
    "max_position_embeddings": 2,
}
POSITIVE = ("ffn_dim_multiplier", "norm_eps", "rope_theta", "rope_scaling_factor")
MAY_BE_NULL = ("n_kv_heads", "ffn_dim_multiplier")
LARGEST = 2**31 - 1
WIDENED = {
    (4096, 14_336): (1.3, 1024),
    (8192, 28_672): (1.3, 4096),
    (2048, 8192): (1.5, 256),
    (3072, 8192): (1.0, 256),
}


def is_meta(folder: Path) -> bool:
    """Whether a model lies there in Meta's format."""
    return (folder / PARAMS).exists()


def import_meta(run: str, out: Path) -> None:
    """Write Meta's folder `run` as a Hugging Face folder.

    Raises `RunError` where it is damaged or holds what is no Llama 3 of text.
    """
    folder = Path(run)
    model_files.check_files(folder)
    params, shards = _read_params(folder / PARAMS), _open_shards(folder)
    tied = _is_tied(shards)
    with _naming(folder / PARAMS):
        shape = {
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_key_value_heads": "n_kv_heads",
        }
        check_values(
            {"model_type": "llama"} | {ours: params.get(metas) for ours, metas in shape.items()}
        )
        config = make_config(params, tied)
        check_config(config)
    like = _expect(config, shards, folder)
    config.dtype = like["model.embed_tokens.weight"].dtype
    config.architectures = ["LlamaForCausalLM"]
    with writing(out) as beside:
        _import_tokenizer(folder, beside, config)
        config.save_pretrained(beside)
        GenerationConfig.from_model_config(config).save_pretrained(beside)
        model_files.spell_for_transformers_4(beside)
        load = partial(_gather, shards, config, like)
        write_weights(beside, Weights(like=like, load=load))


def export_meta(run: str, out: Path) -> None:
    """Write the Llama 3 at `run`, a run or a Hugging Face folder, in Meta's format, as one file of
    weights.

    Raises `RunError` for another model, or one that Meta's code could not run.
    """
    folder = find_folder(run)
    config = read_checked_config(folder)
    params, weights = make_params(config), read_weights(folder)
    ours = {
        meta_name(name): name
        for name in weights.like
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }

    def load(name: str) -> Tensor:
        tensor, heads = weights.load(ours[name]), _rotated_heads(ours[name], config)
        return interleave(tensor, heads) if heads else tensor

    with writing(out) as beside:
        write_atomically(beside / PARAMS, json.dumps(params, indent=2) + "\n")
        _export_tokenizer(folder, beside)
        turned = Weights(
            like={name: weights.like[other] for name, other in ours.items()}, load=load
        )
        write_consolidated(
            beside / CONSOLIDATED.format(0),
            turned,
            {HEAD: EMBEDDING} if config.tie_word_embeddings else {},
        )


def meta_name(name: str) -> str:
    """What Meta calls a tensor of ours."""
    layer, _, kind = name.removeprefix("model.layers.").partition(".")
    if name.startswith("model.layers."):
        return f"layers.{layer}.{NAMES[kind.removesuffix('.weight')]}.weight"
    return f"{NAMES[name.removesuffix('.weight')]}.weight"


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves (i, i + K/2) to neighbours (2i, 2i + 1)."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def separate(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from neighbours (2i, 2i + 1) to halves (i, i + K/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def make_config(params: dict[str, Any], tied: bool) -> LlamaConfig:
    """The configuration that Meta's `params` describe.

    They do not say how far the scaled rotation reaches: 8 times, as in Meta's code, if no published
    model's shape says otherwise.
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


def make_params(config: LlamaConfig) -> dict[str, Any]:
    """Meta's `params` for a configuration.

    Raises `RunError` where they cannot say it.
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
    """What slows the rotation of the published model of this shape; 8 in Meta's code."""
    shapes = (size.model for size in SIZES.values() if size.rung == "llama3")
    found = (m for m in shapes if (m["hidden_size"], m["num_hidden_layers"]) == (width, layers))
    return next(
        (m["rope_parameters"]["factor"] for m in found if "factor" in m["rope_parameters"]), 8.0
    )


def _inner_size(width: int, multiplier: float | None, multiple: int) -> int:
    """The width inside the MLP, as Meta's `FeedForward` finds it."""
    size = int(2 * 4 * width / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple * -(-size // multiple)


def _find_multiplier(width: int, inner: int) -> tuple[float, int]:
    """The multiplier and the multiple that give this width inside the MLP: the published ones where
    there are.
    """
    if (width, inner) in WIDENED:
        return WIDENED[width, inner]
    multiple = min(256, inner & -inner)
    multiplier = inner / int(2 * 4 * width / 3)
    while _inner_size(width, multiplier, multiple) < inner:
        multiplier = math.nextafter(multiplier, math.inf)
    return multiplier, multiple


def _read_params(path: Path) -> dict[str, Any]:
    """The facts in a `params.json`, each of the kind that the model is computed with."""
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
    """What a value must be and is not; None where it is, or nobody computes with it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and key in MAY_BE_NULL:
        return None
    most = MAX_LAYERS if key == "n_layers" else LARGEST
    if key in WHOLE and not (is_number and isinstance(value, int) and WHOLE[key] <= value <= most):
        return f"a whole number from {WHOLE[key]} to {most}"
    if key in POSITIVE and not (is_number and 0 < value <= most):
        return f"a number above 0, {most} at the most"
    return "true or false" if key == "use_scaled_rope" and not isinstance(value, bool) else None


def _open_shards(folder: Path) -> list[Weights]:
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise RunError(f"{folder} has no {CONSOLIDATED.format(0)}: its weights are missing")
    return [read_consolidated(file) for file in files]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise `RunError` about the file where its values are of no model: each class refuses in its
    own words.
    """
    try:
        yield
    except Exception as error:
        raise RunError(f"{path}: no model is as it says ({first_line(error)})") from error


def _is_tied(shards: list[Weights]) -> bool:
    """Whether the head is the embedding again: left out, or written a second time."""
    heads = [
        (shard, shard.like[HEAD], shard.like.get(EMBEDDING))
        for shard in shards
        if HEAD in shard.like
    ]
    return all(
        other is not None
        and head.dtype == other.dtype
        and torch.equal(shard.load(HEAD), shard.load(EMBEDDING))
        for shard, head, other in heads
    )


def _expect(config: LlamaConfig, shards: list[Weights], folder: Path) -> dict[str, Tensor]:
    """The tensors that the model has, without values; their dtype is the shards'."""
    with _naming(folder / PARAMS), torch.device("meta"):
        like = LlamaForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        del like["lm_head.weight"]
    for name, tensor in like.items():
        if any(meta_name(name) not in shard.like for shard in shards):
            raise RunError(
                f"{folder}: its weights lack {meta_name(name)}; the file is damaged or of another "
                f"model"
            )
        like[name] = tensor.to(shards[0].like[meta_name(name)].dtype)
    return like


def _gather(
    shards: list[Weights], config: LlamaConfig, like: dict[str, Tensor], name: str
) -> Tensor:
    """One tensor of ours, from the parts that the shards have of it; a norm's weights are whole in
    each.
    """
    parts, shape = [shard.load(meta_name(name)) for shard in shards], like[name].shape
    whole = parts[0]
    if whole.shape != shape:
        axis = next((axis for axis, size in enumerate(whole.shape) if size != shape[axis]), 0)
        whole = torch.cat(parts, axis)
    if whole.shape != shape:
        raise RunError(
            f"{meta_name(name)} is {tuple(whole.shape)} and should be {tuple(shape)}: see {PARAMS}"
        )
    heads = _rotated_heads(name, config)
    return separate(whole, heads) if heads else whole


def _rotated_heads(name: str, config: LlamaConfig) -> int:
    """How many heads' rows of a tensor are turned by their position; 0 of most."""
    kinds = {
        "q_proj.weight": config.num_attention_heads,
        "k_proj.weight": config.num_key_value_heads,
    }
    return next((heads for kind, heads in kinds.items() if name.endswith(kind)), 0)


def _import_tokenizer(folder: Path, out: Path, config: LlamaConfig) -> None:
    """Write the tokenizer, and its begin and end into `config`."""
    path = folder / TOKENIZER
    if path.exists():
        tokenizer = read_tiktoken(
            path, LLAMA3 if config.rope_parameters["rope_type"] == "default" else LLAMA31
        )
        tokenizer.save_pretrained(out)
    elif (folder / "tokenizer.json").exists():
        copy_files(folder, out, TOKENIZER_FILES)
        tokenizer = load_tokenizer(str(out))
    else:
        logger.warning("%s has no %s: put a tokenizer beside the weights", folder, TOKENIZER)
        return
    if len(tokenizer) != config.vocab_size:
        raise RunError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens and the model "
            f"{config.vocab_size}"
        )
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id


def _export_tokenizer(folder: Path, out: Path) -> None:
    try:
        write_tiktoken(load_tokenizer(str(folder)), out / TOKENIZER)
    except TokenizerError as error:
        logger.warning("the tokenizer goes as it is, Meta's code cannot read it: %s", error)
        copy_files(folder, out, TOKENIZER_FILES)
