"""GGUF: weights, settings and tokenizer in the one file that llama.cpp reads.

Ollama and LM Studio read it too. Names differ from Hugging Face's, and the order of channels:
llama.cpp rotates neighbours (2i, 2i + 1) as Meta's code does, Hugging Face (i, i + K/2). Matrices
are (out, in), which GPT-2's in Hugging Face are not. llama.cpp silently replaces what the file
leaves out (the base of the rotation, how text is split into words), so all is written, and read
back.
"""

import math
import shlex
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from rung import runs
from rung.errors import RunError, did_you_mean
from rung.export.gguf_tokenizer import write_tokenizer
from rung.export.hf import LazyWeights, find_folder, read_weights, write_file
from rung.export.meta import interleave
from rung.models import load, read_checked_config
from rung.models.llama3 import rotary_frequencies


@dataclass(frozen=True, kw_only=True)
class WeightType:
    """A type of matrices, by GGUF's names, and how exactly it must be read back.

    `rounding` bounds the error of a weight, as a share of the largest in its tensor; `noise` that
    of the logits, as a share of their standard deviation.
    """

    matrix: str
    file: str
    rounding: float
    noise: float


WEIGHT_TYPES = {
    "f32": WeightType(matrix="F32", file="ALL_F32", rounding=0.0, noise=1e-4),
    "f16": WeightType(matrix="F16", file="MOSTLY_F16", rounding=2**-11, noise=0.03),
    "q8_0": WeightType(matrix="Q8_0", file="MOSTLY_Q8_0", rounding=1 / 200, noise=0.3),
}
# Kept in float32 whatever the type, as llama.cpp's own converter does.
FLOAT32_TENSORS = ("position_embd.weight", "rope_freqs.weight")
# Matrices that are (in, out) in GPT-2's checkpoints.
TRANSPOSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
# Buffers that published checkpoints hold beside the weights.
BUFFER_NAMES = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# Settings that transformers does not read from a file, beside a scaled rotation: for the comparison
# it is given the run's own.
SETTINGS_NOT_READ = {
    "gpt2": ("n_positions", "n_inner", "activation_function"),
    "llama": ("attention_bias", "mlp_bias"),
}
# The values that llama.cpp computes with, whatever a configuration says.
SUPPORTED_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    "llama": {"hidden_act": ("silu",)},
}
# Bytes of weights in float32: of a larger model only the weights are compared, not the logits.
COMPARED_BYTES = 2**31
# Below this value float16, and the scales of Q8_0, grow less exact.
SMALLEST_SCALE = 1 / 64
PASSAGE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the "
    "season of Light, it was the season of Darkness, it was the spring of hope, it was the winter "
    "of despair."
)


def export_gguf(run: str, out: Path, type: str = "f16") -> str:
    """Write the GPT-2 or Llama 3 at `run` to the file `out`, and read it back.

    Returns a line about what was found. Raises `RunError` for another model, for one that llama.cpp
    would compute otherwise, and where what is read back is not what was written: then there is no
    file.
    """
    gguf = import_gguf()
    if type not in WEIGHT_TYPES:
        raise RunError(f"--type is {type!r}: {did_you_mean(type, WEIGHT_TYPES)}")
    folder, kind = find_folder(run), WEIGHT_TYPES[type]
    config = read_checked_config(folder)
    check_convertible(config, run)
    weights = convert_weights(gguf, config, read_weights(folder))
    with write_file(out) as beside:
        write_gguf(gguf, beside, folder, config, weights, kind)
        found = _read_back(gguf, beside, folder, weights, kind)
    return f"{out.stat().st_size / 1e6:,.1f} MB, {type}; {found}"


def import_gguf() -> ModuleType:
    """Import llama.cpp's own package that writes the format.

    Raises `RunError` where it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise RunError(
            "GGUF needs the package gguf, which is not installed: pip install 'rung[export]'"
        ) from error
    return gguf


def check_convertible(config: PreTrainedConfig, run: str) -> None:
    """Raise `RunError` for a model that llama.cpp does not compute, or computes otherwise."""
    if config.model_type not in SUPPORTED_VALUES:
        raise RunError(
            f"a {config.model_type!r} model cannot be written as GGUF, which llama.cpp must be "
            f"able to compute: of the "
            f"rungs it knows gpt2 and llama3. `rung export {shlex.quote(str(run))} OUT --to hf` "
            f"writes any of them for "
            "transformers, --to arpa an ngram for KenLM"
        )
    for key, values in SUPPORTED_VALUES[config.model_type].items():
        if getattr(config, key) not in values:
            raise RunError(
                f"{key} is {getattr(config, key)!r}: llama.cpp computes "
                f"{' or '.join(map(repr, values))}"
            )
    rope = getattr(config, "rope_parameters", None) or {"rope_type": "default"}
    if rope["rope_type"] not in ("default", "llama3"):
        raise RunError(
            f"rope_type is {rope['rope_type']!r}: only 'default' and 'llama3' are written as GGUF"
        )


def convert_weights(
    gguf: ModuleType, config: PreTrainedConfig, weights: LazyWeights
) -> LazyWeights:
    """Give the tensors llama.cpp's names and order of channels; a tied head is left out.

    Raises `RunError` for a tensor that has no such name.
    """
    architecture = next(
        key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type
    )
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    ours: dict[str, str] = {}
    for name in weights.meta:
        if name.endswith(BUFFER_NAMES) or (config.tie_word_embeddings and name == "lm_head.weight"):
            continue
        other = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if other is None:
            raise RunError(
                f"GGUF has no name for {name}: the weights are not those of a plain "
                f"{config.model_type!r}"
            )
        ours[other] = name
    like = {other: _reorder(weights.meta[name], other, config) for other, name in ours.items()}
    scales = _rotation_scales(config) if isinstance(config, LlamaConfig) else None
    if scales is not None:
        like["rope_freqs.weight"] = scales.to("meta")

    def read(other: str) -> Tensor:
        if other not in ours and scales is not None:
            return scales
        return _reorder(weights.load(ours[other]), other, config).float().contiguous()

    return LazyWeights(meta=like, load=read)


def _reorder(weight: Tensor, name: str, config: PreTrainedConfig) -> Tensor:
    """Put a tensor's rows and columns into llama.cpp's order."""
    part = name.split(".")[-2]
    if config.model_type == "gpt2":
        return weight.T if weight.ndim == 2 and part in TRANSPOSED else weight
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
    return interleave(weight, heads) if heads else weight


def _rotation_scales(config: LlamaConfig) -> Tensor | None:
    """Return what llama.cpp divides each pair of channels' frequency by.

    It is None where that is 1, as for all but Llama 3.1.
    """
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        return None
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float)
    return rope["rope_theta"] ** -(channels / config.head_dim) / rotary_frequencies(
        config, channels.device
    )


def write_gguf(
    gguf: ModuleType,
    path: Path,
    folder: Path,
    config: PreTrainedConfig,
    weights: LazyWeights,
    kind: WeightType,
) -> None:
    """Write the file: settings, tokenizer, then one tensor after another."""
    writer = gguf.GGUFWriter(str(path), config.model_type)
    try:
        writer.add_type("model")
        writer.add_name(folder.resolve().name)
        writer.add_file_type(gguf.LlamaFileType[kind.file])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _describe_model(writer, config)
        write_tokenizer(gguf, writer, folder, config)
        types = {name: _choose_type(gguf, name, like, kind) for name, like in weights.meta.items()}
        for name, stored in types.items():
            shape = gguf.quants.quant_shape_to_byte_shape(tuple(weights.meta[name].shape), stored)
            writer.add_tensor_info(
                name, shape, numpy.dtype(numpy.uint8), math.prod(shape), raw_dtype=stored
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, stored in types.items():
            with numpy.errstate(
                over="ignore"
            ):  # what float16 cannot hold is infinite, and found when it is read back
                writer.write_tensor_data(gguf.quants.quantize(weights.load(name).numpy(), stored))
    finally:
        writer.close()


def _describe_model(writer: Any, config: PreTrainedConfig) -> None:
    """Write the settings that llama.cpp computes by."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if not isinstance(config, LlamaConfig):
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _choose_type(gguf: ModuleType, name: str, like: Tensor, kind: WeightType) -> Any:
    """Choose how a tensor is stored.

    Vectors are in float32; matrices whose rows the type's blocks do not divide are in float16.
    """
    if like.ndim < 2 or name in FLOAT32_TENSORS:
        return gguf.GGMLQuantizationType.F32
    wanted = gguf.GGMLQuantizationType[kind.matrix]
    return (
        gguf.GGMLQuantizationType.F16
        if like.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]
        else wanted
    )


def _read_back(
    gguf: ModuleType, path: Path, folder: Path, weights: LazyWeights, kind: WeightType
) -> str:
    """Compare what is read back with the folder, and return a line about it.

    Each weight is compared, and the logits of a passage. Raises `RunError` where they differ.
    """
    worst, limit = _compare_weights(gguf, path, weights), kind.rounding
    found = f"weights differ by at most {worst:.2g} of the largest beside them"
    if worst <= limit and sum(4 * like.numel() for like in weights.meta.values()) <= COMPARED_BYTES:
        most, worst = _compare_logits(path, folder)
        limit = kind.noise
        found = f"logits differ by at most {most:.2g}"
    if not worst <= limit:  # what is no number is no small one
        raise RunError(
            f"what was written of {folder} is not what is read back: {found}, far more than "
            f"rounding to {kind.matrix} "
            "does; nothing is kept. Weights that float16 cannot hold need --type f32"
        )
    return f"read back, {found}"


def _compare_weights(gguf: ModuleType, path: Path, weights: LazyWeights) -> float:
    """Return the largest error of a weight in the file, as a share of its tensor's largest."""
    worst = numpy.float64(0)
    for tensor in gguf.GGUFReader(str(path)).tensors:
        wanted = weights.load(tensor.name).numpy()
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        largest = max(abs(wanted).max(), SMALLEST_SCALE)
        worst = numpy.maximum(worst, abs(found - wanted).max() / largest)
    return float(worst)


def _compare_logits(path: Path, folder: Path) -> tuple[float, float]:
    """Compare our logits of a passage with those of what transformers reads.

    Returns the largest difference, and their root mean square as a share of the logits' standard
    deviation. The settings are the file's own but for those that transformers does not look for in
    it (`SETTINGS_NOT_READ`).
    """
    model, tokenizer = load(str(folder))
    passage = runs.read_passage(runs.find_record(folder)) or PASSAGE
    ids = tokenizer(passage, return_tensors="pt").input_ids[:, : model.context_length]
    with redirect_stderr(StringIO()):  # a bar that nothing else keeps from being drawn
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        is_scaled = (
            isinstance(model.config, LlamaConfig) and _rotation_scales(model.config) is not None
        )
        for key in (
            *SETTINGS_NOT_READ[config.model_type],
            *(("rope_parameters",) if is_scaled else ()),
        ):
            setattr(config, key, getattr(model.config, key))
        options: dict[str, Any] = {"gguf_file": path.name, "config": config, "dtype": torch.float32}
        peer = AutoModelForCausalLM.from_pretrained(path.parent, **options)
    with torch.inference_mode():
        ours, theirs = model.float()(ids).logits, peer.eval()(ids).logits
    difference = ours - theirs
    return difference.abs().max().item(), (difference.square().mean().sqrt() / ours.std()).item()
