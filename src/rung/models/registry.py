"""The ladder: six rungs, each a Hugging Face model, each with one idea more than the one below it.

Importing this module teaches `AutoConfig` and `AutoModelForCausalLM` the four rungs that
transformers does not ship. `gpt2` and `llama3` are its own model types, so there it loads its own
code and gets the same logits.
"""

from dataclasses import dataclass, fields
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

from rung.data.tokenizer import load_tokenizer, required_vocab_size
from rung.errors import RecipeError, RunError, did_you_mean
from rung.models.base import CausalModel
from rung.models.bigram import BigramConfig, BigramForCausalLM
from rung.models.config_checks import (
    check_against_tokenizer,
    check_config,
    check_kinds,
    check_values,
)
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.llama3 import LlamaForCausalLM
from rung.models.loading import (
    check_has_weights,
    check_tables,
    check_weights,
    find_model,
    quietly,
    read_config,
    refuse_shape,
    say_in_a_line,
)
from rung.models.ngram.infinigram import InfinigramConfig, InfinigramForCausalLM
from rung.models.ngram.model import NgramConfig, NgramForCausalLM
from rung.models.rnn import RNNConfig, RNNForCausalLM
from rung.models.rnn_attention import RNNAttentionConfig, RNNAttentionForCausalLM
from rung.models.sizes import SIZES, fill_size
from rung.models.swaps import SwapsConfig, SwapsForCausalLM


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One rung: its idea, its Hugging Face classes, and the shape it has when nobody asks for
    another.
    """

    idea: str
    config: type[PreTrainedConfig]
    model: type[CausalModel]
    shape: dict[str, Any]

    @property
    def counts(self) -> bool:
        """Whether it is fitted by counting, in one pass, and not trained by gradients."""
        return hasattr(self.model, "fit")


LADDER: dict[str, Rung] = {
    "bigram": Rung(idea="count pairs", config=BigramConfig, model=BigramForCausalLM, shape={}),
    "ngram": Rung(
        idea="count longer, back off well",
        config=NgramConfig,
        model=NgramForCausalLM,
        shape={"order": 5},
    ),
    "rnn": Rung(
        idea="remember", config=RNNConfig, model=RNNForCausalLM, shape={"num_hidden_layers": 1}
    ),
    "rnn-attention": Rung(
        idea="look back",
        config=RNNAttentionConfig,
        model=RNNAttentionForCausalLM,
        shape={"num_hidden_layers": 1},
    ),
    "gpt2": Rung(
        idea="drop recurrence",
        config=GPT2Config,
        model=GPT2LMHeadModel,
        shape={"num_hidden_layers": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "llama3": Rung(
        idea="modernise",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        shape={"num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
}
BESIDE: dict[str, Rung] = {  # made and measured like a rung, no step of the ladder
    "infini-gram": Rung(
        idea="count any length", config=InfinigramConfig, model=InfinigramForCausalLM, shape={}
    ),
    "swaps": Rung(idea="modernise by parts", config=SwapsConfig, model=SwapsForCausalLM, shape={}),
}
RUNGS = {
    rung.config.model_type: rung for rung in (LADDER | BESIDE).values()
}  # as a configuration names them
TRANSFORMERS = ("gpt2", "llama3", "swaps")
HEAD_SIZE = 64
COMMON_FIELDS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
STAND_IN = dict(zip(COMMON_FIELDS, (256, 0, 0, 0), strict=True))

for _rung in (*LADDER.values(), *BESIDE.values()):
    if _rung.config.model_type.startswith("rung-"):
        AutoConfig.register(_rung.config.model_type, _rung.config, exist_ok=True)
        AutoModelForCausalLM.register(_rung.config, _rung.model, exist_ok=True)


def find_rung(name: str) -> Rung:
    """The rung of that name, or of that size's name.

    Raises `RecipeError` when there is none.
    """
    known = LADDER | BESIDE
    if name not in (*known, *SIZES):
        near = did_you_mean(name, [*known, *SIZES])
        raise RecipeError(
            f"unknown rung {name!r}: {near if '?' in near else did_you_mean(name, known)}"
        )
    return known[fill_size(name, {})[0]]


def name_rung(model: type[CausalModel]) -> str:
    """What a rung's class is called; the class's own name for one that is none."""
    return next(
        (name for name, rung in (LADDER | BESIDE).items() if rung.model is model), model.__name__
    )


def make_config(
    name: str, tokenizer: PreTrainedTokenizerBase | None, settings: dict[str, Any]
) -> PreTrainedConfig:
    """The configuration of rung or size `name` for this tokenizer; `settings` are fields of its
    config class.

    Widths that `settings` leaves open follow from those it gives. Raises `RecipeError` for a bad
    field or value: before there is a tokenizer, for those that none can mend.
    """
    rung, (name, settings) = find_rung(name), fill_size(name, settings)
    known = config_fields(name)
    if key := next((key for key in settings if key not in known), None):
        near = did_you_mean(key, known, f"all are the fields of {rung.config.__name__}")
        raise RecipeError(f"model.{key}: {name} has no such field; {near}")
    check_kinds(rung.config, settings, "model.")  # before shapes are computed with them
    own = STAND_IN | {key: value for key, value in settings.items() if key in STAND_IN}
    if tokenizer is not None:
        own = {"vocab_size": required_vocab_size(tokenizer)} | {
            key: getattr(tokenizer, key) for key in COMMON_FIELDS[1:]
        }
    check_against_tokenizer(settings, own)
    wanted = own | rung.shape | settings
    if "num_attention_heads" in known and "hidden_size" in wanted and name in TRANSFORMERS:
        wanted = _transformer_shape(name, wanted)
    check_values(wanted | {"model_type": rung.config.model_type}, "model.")
    try:
        config = rung.config(**wanted)
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
    config = find_rung(name).config
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
        return find_rung(name).model(config)
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


def match_parameters(
    name: str, tokenizer: PreTrainedTokenizerBase, target: int, settings: dict[str, Any]
) -> int:
    """The hidden size at which rung `name` has nearest to `target` parameters."""
    step = 32 if name in TRANSFORMERS else 8  # heads want round widths
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
    where, is_local = find_model(path)
    is_folder = Path(where).is_dir()
    config = (
        read_folder(Path(where))
        if is_folder and not settings
        else read_config(where, RUNGS, is_local)
    )
    if is_folder:
        check_has_weights(Path(where))
    rung = RUNGS.get(config.model_type)
    if rung is None:
        kinds = ", ".join(RUNGS)
        raise RunError(f"{where} is a {config.model_type!r} model: rung reads {kinds}")
    try:
        with quietly():
            options = {"output_loading_info": True, "ignore_mismatched_sizes": True} | (
                settings or {}
            )
            options["local_files_only"] = is_local
            model, report = rung.model.from_pretrained(where, **options)
    except RecipeError as error:
        raise RunError(f"{where}: {error}") from error
    except Exception as error:  # safetensors, a damaged file
        raise RunError(
            f"{where}: its weights could not be read ({say_in_a_line(error)}); train it again"
        ) from error
    for key, found, wanted in sorted(report["mismatched_keys"]):
        refuse_shape(where, key, found, wanted)
    if lost := sorted(report["missing_keys"]):
        raise RunError(
            f"{where}: its weights lack {', '.join(lost[:3])}; the file is damaged or of another "
            f"model"
        )
    check_tables(model, where)
    tokenizer = load_tokenizer(where)
    if (known := required_vocab_size(tokenizer)) > (rows := model.config.vocab_size):
        raise RunError(
            f"{where}: its tokenizer has {known:,} tokens and its model knows {rows:,}: they do "
            f"not belong together"
        )
    return model.eval(), tokenizer


def read_folder(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder whose weights, where it is a rung's, are such a model's; only
    headers are read.

    Raises `RunError` where something there is damaged.
    """
    config = read_config(folder, RUNGS)
    if rung := RUNGS.get(config.model_type):
        check_weights(rung.model, config, folder)
    return config


def _transformer_shape(name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Heads of 64 channels, one key-value head for two query heads, SwiGLU as large as a GELU layer
    of 4 D.
    """
    width = wanted["hidden_size"]
    if "num_attention_heads" not in wanted:
        heads = max(1, width // HEAD_SIZE)
        wanted["num_attention_heads"] = next(
            (h for h in range(heads, 0, -1) if width % (2 * h) == 0), 1
        )
    if name != "gpt2":
        heads = wanted["num_attention_heads"]
        wanted.setdefault("num_key_value_heads", heads // 2 if heads % 2 == 0 else heads)
        wanted.setdefault("intermediate_size", max(32, round(8 * width / 3 / 32) * 32))
    return wanted
