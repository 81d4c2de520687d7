"""The models of the ladder: find a rung by its name, make its configuration, build it.

Importing this module registers the rungs that transformers does not ship with `AutoConfig` and
`AutoModelForCausalLM`. `gpt2` and `llama3` are model types of transformers, which loads its own
code for them and gets the same logits.
"""

from dataclasses import dataclass, field, fields
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
from rung.errors import RecipeError, did_you_mean
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
from rung.models.ngram.infinigram import InfinigramConfig, InfinigramForCausalLM
from rung.models.ngram.model import NgramConfig, NgramForCausalLM
from rung.models.rnn import RNNConfig, RNNForCausalLM
from rung.models.rnn_attention import RNNAttentionConfig, RNNAttentionForCausalLM
from rung.models.sizes import SIZES, resolve_size
from rung.models.swaps import SwapsConfig, SwapsForCausalLM


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung: its Hugging Face classes, and its defaults for fields of the config.

    `train` are a recipe's defaults for fields of `TrainingArguments`, `model` those for fields of
    the config which its starts need, and `context` the tokens of a training row for runs of less
    than twenty minutes. `starts` are those that `starts.py` can make for it beside random weights,
    the default first. `learning_rate` is the one of a model of `REFERENCE_WIDTH` channels, and
    falls with this power of the width beyond.
    """

    name: str
    config_class: type[PreTrainedConfig]
    model_class: type[CausalModel]
    defaults: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    context: int = 256
    starts: tuple[str, ...] = ()
    learning_rate: float = 6e-3
    rate_power: float = 0.5

    @property
    def idea(self) -> str:
        """The idea that the rung adds, in a few words."""
        return IDEAS[self.name]

    @property
    def counts(self) -> bool:
        """Whether the rung is fitted by counting, instead of being trained by gradients."""
        return is_counting(self.name)

    def find_learning_rate(self, width: int) -> float:
        """Return the learning rate of a model so wide: mostly half with four times the channels."""
        narrower = REFERENCE_WIDTH / max(width, NARROWEST)
        return self.learning_rate * narrower ** (self.rate_power if narrower < 1 else 0.5)


# In a short run rare tokens get few gradients. After 0.92 M tokens, with 64 channels and 2 layers,
# llama3 at 1, 2 and 4 times the rate scores 1.938, 1.923 and 1.920 bits a byte on novels (4,096
# tokens, with a teacher), and 1.736, 1.732 and 1.813 on python-docs (1,024 tokens, two seeds). gpt2
# scores 1.912 there at 1, and 1.901 at 4 (`rung train RUNG CORPUS --steps 450 --set hidden_size=64
# --set num_hidden_layers=2 --set optim_args=embedding_lr_scale=4`).
FASTER_EMBEDDINGS = {"gpt2": "embedding_lr_scale=4", "llama3": "embedding_lr_scale=2"}
# The best learning rate falls as the width grows. By test bits a byte on python-docs (`rung train
# RUNG CORPUS --steps N --set hidden_size=WIDTH --set learning_rate=RATE`), rnn-attention of 240
# channels scores 2.117, 1.969 and 2.057 at 0.024, 0.012 and 0.006 after 0.6 M tokens, and 1.824,
# 1.716 and 1.714 after 3.3 M; of 96 channels 2.102, 2.187 and 2.385 after 0.6 M. Of 592 channels it
# scores 1.849 at 0.003 and 1.829 at 0.005 after 0.92 M, and at 0.0084 unlearnt all copying in ten
# minutes. rnn of 768 scores 2.122 at 0.016 and 2.075 at 0.0067 after 1.4 M. After equal time
# (benchmarks/training/muon.py, `--seconds 60`) a Llama of 512 channels has 2.158, 1.994 and 2.079
# at 0.006, 0.003 and 0.0015, a GPT-2 of 768 channels 2.676, 2.406 and 2.446 at 0.006, 0.003, 0.001.
REFERENCE_WIDTH, NARROWEST = 128, 64
# A head of its own with a bias, and embeddings that open the gates: at equal tokens a tied one
# costs an RNN of 96 channels 0.18 bits a byte (benchmarks/recipe/recurrent.jsonl).
RECURRENT_DEFAULTS = {
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
    "head_bias": True,
    "embedding_range": 0.3,
}
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
        defaults=RECURRENT_DEFAULTS,
        train={"per_device_train_batch_size": 32},
        context=64,
        starts=("unigram", "bigram"),
        learning_rate=0.04,
        rate_power=1.0,
    ),
    Rung(
        name="rnn-attention",
        config_class=RNNAttentionConfig,
        model_class=RNNAttentionForCausalLM,
        defaults=RECURRENT_DEFAULTS,
        starts=("induction", "unigram", "bigram"),
        learning_rate=0.018,
        rate_power=1.0,
    ),
    Rung(
        name="gpt2",
        config_class=GPT2Config,
        model_class=GPT2LMHeadModel,
        defaults={"num_hidden_layers": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        train={"optim_args": FASTER_EMBEDDINGS["gpt2"]},
        model={"tie_word_embeddings": False},
        starts=("induction",),
    ),
    Rung(
        name="llama3",
        config_class=LlamaConfig,
        model_class=LlamaForCausalLM,
        defaults={"num_hidden_layers": 4, "tie_word_embeddings": True},
        train={"per_device_train_batch_size": 4, "optim_args": FASTER_EMBEDDINGS["llama3"]},
        model={"tie_word_embeddings": False},
        context=512,
        starts=("induction",),
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
    """The rung of that name, or of the size of that name.

    Raises `RecipeError` where there is none.
    """
    if name not in (*RUNGS, *SIZES):
        near = did_you_mean(name, [*RUNGS, *SIZES])
        raise RecipeError(
            f"unknown rung {name!r}: {near if '?' in near else did_you_mean(name, RUNGS)}"
        )
    return RUNGS[resolve_size(name, {})[0]]


def find_rung_name(model: type[CausalModel]) -> str:
    """The rung's name of a model class, or the class's own name where it is no rung's."""
    return next(
        (rung.name for rung in _RUNGS if rung.model_class is model),
        model.__name__,
    )


def make_config(
    name: str, tokenizer: PreTrainedTokenizerBase | None, settings: dict[str, Any]
) -> PreTrainedConfig:
    """Make the configuration of rung or size `name` for a tokenizer.

    `settings` are fields of its config class; widths that they leave open follow from those they
    give. Without a tokenizer, placeholders stand for what it decides. Raises `RecipeError` for a
    bad field or value.
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
    """The fields that `model` settings of this rung may have."""
    config = find_rung(name).config_class
    inherited = {f.name for f in fields(PreTrainedConfig)}
    own = [
        f.name for f in fields(config) if f.name not in inherited or f.name == "tie_word_embeddings"
    ]
    return own + [key for key in config.attribute_map if key not in own]


def build_model(name: str, config: PreTrainedConfig) -> CausalModel:
    """Build a new model with random weights.

    Raises `RecipeError` for a configuration that the rung cannot have.
    """
    try:
        return find_rung(name).model_class(config)
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"model: {name} cannot be built so: {error}") from error


def count_parameters(model: PreTrainedModel) -> int:
    """The number of weights, or of the n-grams or tokens that a counting rung stores."""
    if isinstance(model, BigramForCausalLM):
        return len(model.tokens)
    if isinstance(model, NgramForCausalLM):
        return sum(model.config.num_ngrams)
    if isinstance(model, InfinigramForCausalLM):
        return model.config.num_tokens
    return sum(p.numel() for p in model.parameters())


def count_hidden_parameters(model: PreTrainedModel) -> int:
    """Count the weights outside the token embeddings and the head."""
    tables = {id(p): p.numel() for p in model.get_input_embeddings().parameters()}
    if (head := model.get_output_embeddings()) is not None:
        tables |= {id(p): p.numel() for p in head.parameters()}
    return count_parameters(model) - sum(tables.values())


def find_hidden_size(
    name: str, tokenizer: PreTrainedTokenizerBase, target: int, settings: dict[str, Any]
) -> int:
    """Find the hidden size at which rung `name` has nearest to `target` parameters."""
    step = 32 if name in TRANSFORMER_RUNGS else 8  # heads need round widths
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


def _transformer_shape(name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Choose the widths that are left open.

    Heads of 64 channels, one key-value head for two query heads, and a SwiGLU as large as a GELU
    layer of 4 D.
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
