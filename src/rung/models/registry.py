"""The ladder: six rungs, each a Hugging Face model, each with one idea more than the one below it.

Importing this module teaches `AutoConfig` and `AutoModelForCausalLM` the four rungs that
transformers does not ship. `gpt2` and `llama3` are its own model types, so there it loads its own
code and gets the same logits.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rung.data.tokenizer import required_vocab_size
from rung.data.tokenizer_loading import load_tokenizer
from rung.errors import RecipeError, RunError, did_you_mean
from rung.ladder import IDEAS, TRANSFORMER_RUNGS, is_counting
from rung.models.base import CausalModel
from rung.models.bigram import BigramConfig, BigramForCausalLM
from rung.models.config_checks import (
    check_against_tokenizer,
    check_config,
    check_types,
    check_values,
)
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.llama3 import LlamaForCausalLM
from rung.models.loading import (
    check_has_weights,
    check_tensors,
    check_weights,
    first_line,
    locate_model,
    read_config,
    refuse_shape_mismatch,
    silence_transformers,
)
from rung.models.ngram.infinigram import InfinigramConfig, InfinigramForCausalLM
from rung.models.ngram.model import NgramConfig, NgramForCausalLM
from rung.models.rnn import RNNConfig, RNNForCausalLM
from rung.models.rnn_attention import RNNAttentionConfig, RNNAttentionForCausalLM
from rung.models.sizes import SIZES, resolve_size
from rung.models.swaps import SwapsConfig, SwapsForCausalLM


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung: its Hugging Face classes, and the shape that it has by default."""

    name: str
    config_class: type[PreTrainedConfig]
    model_class: type[CausalModel]
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def idea(self) -> str:
        """The idea that the rung adds, in a few words."""
        return IDEAS[self.name]

    @property
    def counts(self) -> bool:
        """Whether it is fitted by counting, in one pass, instead of being trained by gradients."""
        return is_counting(self.name)


_RUNGS = (
    Rung(name="bigram", config_class=BigramConfig, model_class=BigramForCausalLM),
    Rung(
        name="ngram",
        config_class=NgramConfig,
        model_class=NgramForCausalLM,
        defaults={"order": 5},
    ),
    Rung(
        name="rnn",
        config_class=RNNConfig,
        model_class=RNNForCausalLM,
        defaults={"num_hidden_layers": 1},
    ),
    Rung(
        name="rnn-attention",
        config_class=RNNAttentionConfig,
        model_class=RNNAttentionForCausalLM,
        defaults={"num_hidden_layers": 1},
    ),
    Rung(
        name="gpt2",
        config_class=GPT2Config,
        model_class=GPT2LMHeadModel,
        defaults={"num_hidden_layers": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    Rung(
        name="llama3",
        config_class=LlamaConfig,
        model_class=LlamaForCausalLM,
        defaults={"num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
    Rung(name="infini-gram", config_class=InfinigramConfig, model_class=InfinigramForCausalLM),
    Rung(name="swaps", config_class=SwapsConfig, model_class=SwapsForCausalLM),
)
RUNGS: dict[str, Rung] = {rung.name: rung for rung in _RUNGS}
RUNGS_BY_MODEL_TYPE = {rung.config_class.model_type: rung for rung in _RUNGS}
DEFAULT_HEAD_SIZE = 64
TOKENIZER_FIELDS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
PLACEHOLDER_FIELDS = dict(zip(TOKENIZER_FIELDS, (256, 0, 0, 0), strict=True))

for _rung in _RUNGS:
    if _rung.config_class.model_type.startswith("rung-"):
        AutoConfig.register(_rung.config_class.model_type, _rung.config_class, exist_ok=True)
        AutoModelForCausalLM.register(_rung.config_class, _rung.model_class, exist_ok=True)


def find_rung(name: str) -> Rung:
    """The rung of that name, or of that size's name.

    Raises `RecipeError` when there is none.
    """
    if name not in (*RUNGS, *SIZES):
        near = did_you_mean(name, [*RUNGS, *SIZES])
        raise RecipeError(
            f"unknown rung {name!r}: {near if '?' in near else did_you_mean(name, RUNGS)}"
        )
    return RUNGS[resolve_size(name, {})[0]]


def find_rung_name(model: type[CausalModel]) -> str:
    """What a rung's class is called; the class's own name for one that is none."""
    return next(
        (rung.name for rung in _RUNGS if rung.model_class is model),
        model.__name__,
    )


def make_config(
    name: str, tokenizer: PreTrainedTokenizerBase | None, settings: dict[str, Any]
) -> PreTrainedConfig:
    """The configuration of rung or size `name` for this tokenizer; `settings` are fields of its
    config class.

    Widths that `settings` leaves open follow from those it gives. Raises `RecipeError` for a bad
    field or value: before there is a tokenizer, for those that none can mend.
    """
    rung, (name, settings) = find_rung(name), resolve_size(name, settings)
    known = config_fields(name)
    if key := next((key for key in settings if key not in known), None):
        near = did_you_mean(key, known, f"all are the fields of {rung.config_class.__name__}")
        raise RecipeError(f"model.{key}: {name} has no such field; {near}")
    check_types(rung.config_class, settings, "model.")  # before shapes are computed with them
    own = PLACEHOLDER_FIELDS | {
        key: value for key, value in settings.items() if key in PLACEHOLDER_FIELDS
    }
    if tokenizer is not None:
        own = {"vocab_size": required_vocab_size(tokenizer)} | {
            key: getattr(tokenizer, key) for key in TOKENIZER_FIELDS[1:]
        }
    check_against_tokenizer(settings, own)
    wanted = own | rung.defaults | settings
    if "num_attention_heads" in known and "hidden_size" in wanted and name in TRANSFORMER_RUNGS:
        wanted = _transformer_shape(name, wanted)
    check_values(wanted | {"model_type": rung.config_class.model_type}, "model.")
    try:
        config = rung.config_class(**wanted)
    except Exception as error:  # huggingface_hub's strict dataclasses raise their own kinds
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"model: {name} cannot be built so: {' '.join(str(error).split())}"
        ) from error
    check_config(config)
    return config


def config_fields(name: str) -> list[str]:
    """The names that `model` settings of this rung may use."""
    config = find_rung(name).config_class
    inherited = {f.name for f in fields(PreTrainedConfig)}
    own = [
        f.name for f in fields(config) if f.name not in inherited or f.name == "tie_word_embeddings"
    ]
    return own + [key for key in config.attribute_map if key not in own]


def build_model(name: str, config: PreTrainedConfig) -> CausalModel:
    """A new model with random weights.

    Raises `RecipeError` for a configuration that the rung cannot have.
    """
    try:
        return find_rung(name).model_class(config)
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"model: {name} cannot be built so: {error}") from error


def count_parameters(model: PreTrainedModel) -> int:
    """Numbers the model stores: weights, or for a counting rung the n-grams or the tokens that it
    knows.
    """
    if isinstance(model, BigramForCausalLM):
        return len(model.tokens)
    if isinstance(model, NgramForCausalLM):
        return sum(model.config.num_ngrams)
    if isinstance(model, InfinigramForCausalLM):
        return model.config.num_tokens
    return sum(p.numel() for p in model.parameters())


def find_hidden_size(
    name: str, tokenizer: PreTrainedTokenizerBase, target: int, settings: dict[str, Any]
) -> int:
    """The hidden size at which rung `name` has nearest to `target` parameters."""
    step = 32 if name in TRANSFORMER_RUNGS else 8  # heads want round widths
    settings = {"vocab_size": required_vocab_size(tokenizer), **settings}
    best, previous = step, None
    for width in range(step, 8192, step):
        with torch.device("meta"):
            size = count_parameters(
                build_model(name, make_config(name, tokenizer, {**settings, "hidden_size": width}))
            )
        if previous is not None and abs(size - target) >= previous:
            break
        best, previous = width, abs(size - target)
    return best


def load(
    path: str | Path, settings: dict[str, Any] | None = None
) -> tuple[CausalModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a run folder, a Hugging Face model folder or a Hub id, in our
    own code.

    `settings` are fields of its configuration to be other than saved. Raises `RunError` for what is
    damaged or none.
    """
    where, is_local = locate_model(path)
    is_folder = Path(where).is_dir()
    config = (
        read_checked_config(Path(where))
        if is_folder and not settings
        else read_config(where, RUNGS_BY_MODEL_TYPE, is_local)
    )
    if is_folder:
        check_has_weights(Path(where))
    rung = RUNGS_BY_MODEL_TYPE.get(config.model_type)
    if rung is None:
        kinds = ", ".join(RUNGS_BY_MODEL_TYPE)
        raise RunError(f"{where} is a {config.model_type!r} model: rung reads {kinds}")
    try:
        with silence_transformers():
            options = {"output_loading_info": True, "ignore_mismatched_sizes": True} | (
                settings or {}
            )
            options["local_files_only"] = is_local
            model, report = rung.model_class.from_pretrained(where, **options)
    except RecipeError as error:
        raise RunError(f"{where}: {error}") from error
    except Exception as error:  # safetensors, a damaged file
        raise RunError(
            f"{where}: its weights could not be read ({first_line(error)}); train it again"
        ) from error
    for key, found, wanted in sorted(report["mismatched_keys"]):
        refuse_shape_mismatch(where, key, found, wanted)
    if lost := sorted(report["missing_keys"]):
        raise RunError(
            f"{where}: its weights lack {', '.join(lost[:3])}; the file is damaged or of another "
            f"model"
        )
    check_tensors(model, where)
    tokenizer = load_tokenizer(where)
    if (known := required_vocab_size(tokenizer)) > (rows := model.config.vocab_size):
        raise RunError(
            f"{where}: its tokenizer has {known:,} tokens and its model knows {rows:,}: they do "
            f"not belong together"
        )
    return model.eval(), tokenizer


def read_checked_config(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder whose weights, where it is a rung's, are such a model's; only
    headers are read.

    Raises `RunError` where something there is damaged.
    """
    config = read_config(folder, RUNGS_BY_MODEL_TYPE)
    if rung := RUNGS_BY_MODEL_TYPE.get(config.model_type):
        check_weights(rung.model_class, config, folder)
    return config


def _transformer_shape(name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Heads of 64 channels, one key-value head for two query heads, SwiGLU as large as a GELU layer
    of 4 D.
    """
    width = wanted["hidden_size"]
    if "num_attention_heads" not in wanted:
        heads = max(1, width // DEFAULT_HEAD_SIZE)
        wanted["num_attention_heads"] = next(
            (h for h in range(heads, 0, -1) if width % (2 * h) == 0), 1
        )
    if name != "gpt2":
        heads = wanted["num_attention_heads"]
        wanted.setdefault("num_key_value_heads", heads // 2 if heads % 2 == 0 else heads)
        wanted.setdefault("intermediate_size", max(32, round(8 * width / 3 / 32) * 32))
    return wanted
