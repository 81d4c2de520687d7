"""Meta's own format of Llama 3: `params.json`, `consolidated.NN.pth`, `tokenizer.model`.

Names differ from Hugging Face's, and the order of channels: Meta rotates neighbours (2i, 2i + 1),
Hugging Face (i, i + K/2), so the rows of the queries' and keys' weights stand in another order. A
large model lies in several files, each with a part of every matrix (Shoeybi et al. 2019). The
context, and a factor other than the published one, have no place in Meta's `ModelArgs`: they are
written as keys of their own, which its code ignores.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig

from rung import model_files
from rung.data.tokenizer_loading import load_tokenizer
from rung.errors import RunError, TokenizerError, first_line
from rung.export.hf import (
    LazyWeights,
    copy_files,
    find_folder,
    read_weights,
    write_folder,
    write_weights,
)
from rung.export.meta_params import config_from_params, params_from_config, read_params
from rung.export.tiktoken import LLAMA3, LLAMA31, read_tiktoken, write_tiktoken
from rung.export.torch_archive import read_consolidated, write_consolidated
from rung.files import write_atomically
from rung.model_files import TOKENIZER_FILES
from rung.models import read_checked_config
from rung.models.config_checks import check_config, check_values
from rung.models.llama3 import LlamaForCausalLM

logger = logging.getLogger(__name__)

PARAMS, TOKENIZER_MODEL, CONSOLIDATED = "params.json", "tokenizer.model", "consolidated.{:02d}.pth"
# Our name of each tensor, and Meta's.
META_NAMES = {
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


def is_meta(folder: Path) -> bool:
    """Whether the folder holds a model in Meta's format."""
    return (folder / PARAMS).exists()


def import_meta(run: str, out: Path) -> None:
    """Write Meta's folder `run` as a Hugging Face folder.

    Raises `RunError` where it is damaged, and where it is no Llama 3 of text.
    """
    folder = Path(run)
    model_files.check_files(folder)
    params, shards = read_params(folder / PARAMS), _open_shards(folder)
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
        config = config_from_params(params, tied)
        check_config(config)
    like = _expect(config, shards, folder)
    config.dtype = like["model.embed_tokens.weight"].dtype
    config.architectures = ["LlamaForCausalLM"]
    with write_folder(out) as beside:
        _import_tokenizer(folder, beside, config)
        config.save_pretrained(beside)
        GenerationConfig.from_model_config(config).save_pretrained(beside)
        model_files.spell_for_transformers_4(beside)
        load = partial(_gather, shards, config, like)
        write_weights(beside, LazyWeights(meta=like, load=load))


def export_meta(run: str, out: Path) -> None:
    """Write the Llama 3 at `run` in Meta's format, as one file of weights.

    Raises `RunError` for another model, and for one that Meta's code could not run.
    """
    folder = find_folder(run)
    config = read_checked_config(folder)
    params, weights = params_from_config(config), read_weights(folder)
    ours = {
        meta_name(name): name
        for name in weights.meta
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }

    def load(name: str) -> Tensor:
        tensor, heads = weights.load(ours[name]), _rotated_heads(ours[name], config)
        return interleave(tensor, heads) if heads else tensor

    with write_folder(out) as beside:
        write_atomically(beside / PARAMS, json.dumps(params, indent=2) + "\n")
        _export_tokenizer(folder, beside)
        turned = LazyWeights(
            meta={name: weights.meta[other] for name, other in ours.items()}, load=load
        )
        write_consolidated(
            beside / CONSOLIDATED.format(0),
            turned,
            {HEAD: EMBEDDING} if config.tie_word_embeddings else {},
        )


def meta_name(name: str) -> str:
    """Return Meta's name of a tensor."""
    layer, _, kind = name.removeprefix("model.layers.").partition(".")
    if name.startswith("model.layers."):
        return f"layers.{layer}.{META_NAMES[kind.removesuffix('.weight')]}.weight"
    return f"{META_NAMES[name.removesuffix('.weight')]}.weight"


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from halves (i, i + K/2) to neighbours (2i, 2i + 1)."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def separate(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from neighbours (2i, 2i + 1) to halves (i, i + K/2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def _open_shards(folder: Path) -> list[LazyWeights]:
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise RunError(f"{folder} has no {CONSOLIDATED.format(0)}: its weights are missing")
    return [read_consolidated(file) for file in files]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise `RunError` about the file for any error of its values.

    Each class of the configuration refuses in its own words.
    """
    try:
        yield
    except Exception as error:
        raise RunError(f"{path}: no model is as it says ({first_line(error)})") from error


def _is_tied(shards: list[LazyWeights]) -> bool:
    """Whether the head is the embedding: left out, or written a second time."""
    heads = [
        (shard, shard.meta[HEAD], shard.meta.get(EMBEDDING))
        for shard in shards
        if HEAD in shard.meta
    ]
    return all(
        other is not None
        and head.dtype == other.dtype
        and torch.equal(shard.load(HEAD), shard.load(EMBEDDING))
        for shard, head, other in heads
    )


def _expect(config: LlamaConfig, shards: list[LazyWeights], folder: Path) -> dict[str, Tensor]:
    """Return the model's tensors without values, in the dtype of the shards."""
    with _naming(folder / PARAMS), torch.device("meta"):
        like = LlamaForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        del like["lm_head.weight"]
    for name, tensor in like.items():
        if any(meta_name(name) not in shard.meta for shard in shards):
            raise RunError(
                f"{folder}: its weights lack {meta_name(name)}; the file is damaged or of another "
                f"model"
            )
        like[name] = tensor.to(shards[0].meta[meta_name(name)].dtype)
    return like


def _gather(
    shards: list[LazyWeights], config: LlamaConfig, like: dict[str, Tensor], name: str
) -> Tensor:
    """Put one of our tensors together from the shards' parts; a norm is whole in each."""
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
    """Count the heads whose rows the position rotates; 0 for most tensors."""
    kinds = {
        "q_proj.weight": config.num_attention_heads,
        "k_proj.weight": config.num_key_value_heads,
    }
    return next((heads for kind, heads in kinds.items() if name.endswith(kind)), 0)


def _import_tokenizer(folder: Path, out: Path, config: LlamaConfig) -> None:
    """Write the tokenizer, and its begin and end tokens into `config`."""
    path = folder / TOKENIZER_MODEL
    if path.exists():
        tokenizer = read_tiktoken(
            path, LLAMA3 if config.rope_parameters["rope_type"] == "default" else LLAMA31
        )
        tokenizer.save_pretrained(out)
    elif (folder / "tokenizer.json").exists():
        copy_files(folder, out, TOKENIZER_FILES)
        tokenizer = load_tokenizer(str(out))
    else:
        logger.warning("%s has no %s: put a tokenizer beside the weights", folder, TOKENIZER_MODEL)
        return
    if len(tokenizer) != config.vocab_size:
        raise RunError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens and the model "
            f"{config.vocab_size}"
        )
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id


def _export_tokenizer(folder: Path, out: Path) -> None:
    try:
        write_tiktoken(load_tokenizer(str(folder)), out / TOKENIZER_MODEL)
    except TokenizerError as error:
        logger.warning("the tokenizer goes as it is, Meta's code cannot read it: %s", error)
        copy_files(folder, out, TOKENIZER_FILES)
