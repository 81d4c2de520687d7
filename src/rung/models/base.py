"""The base of every rung: a Hugging Face causal language model, its loss and its state.

Axes, here and in every rung: B batch, T time (tokens), S keys seen, D hidden, H heads, K head size,
V vocabulary.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.data.tokenizer import encode_ordinary
from rung.errors import RunError
from rung.models.config_checks import check_config
from rung.models.exact_probabilities import ExactProbabilities
from rung.models.forward_options import refuse_continuous_batching, refuse_to_crop
from rung.models.fused import is_unmodified, linear_cross_entropy

# Either 1 for tokens and 0 for padding, or which keys each query may look at.
AttentionMask = Shaped[Tensor, "B S"] | Shaped[Tensor, "#B 1 T S"]


class CausalModel(PreTrainedModel, GenerationMixin):
    """A Hugging Face causal language model; the base of every rung, never a rung itself."""

    supports_gradient_checkpointing = False
    _supports_sdpa = True
    init_continuous_batching = refuse_continuous_batching
    # Whether training may begin a stretch of text with the state that the one before left.
    can_carry_state = False
    # The tokens to read at once in the place of its own number, as the user says.
    window: int | None = None

    def __init__(self, config: PreTrainedConfig, *args: Any, **options: Any) -> None:
        check_config(config)
        super().__init__(config, *args, **options)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # Every call chooses its kernel by what is asked for, so eager and sdpa are the same here.
        return True

    @property
    def context_length(self) -> int | None:
        """The number of tokens it was trained to look at; None where its state has no end."""
        return self.window or getattr(self.config, "max_position_embeddings", None)

    @property
    def max_context_length(self) -> int | None:
        """The number of tokens the model can read at once.

        More than `context_length` where its positions reach further.
        """
        return getattr(self.config, "max_position_embeddings", None)

    def make_exact_probabilities(self) -> ExactProbabilities | None:
        """Make whole numbers of its probabilities, the same on every machine; None without them."""
        return None

    @property
    def carries_state(self) -> bool:
        """Whether reading a text in chunks gives what reading it whole does."""
        return True

    def get_output_embeddings(self) -> Any:
        """Return the head; None for a rung that has none."""
        return getattr(self, "lm_head", None)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Save as Hugging Face does, with a generation length that ends with the window."""
        if self.context_length and self.generation_config:
            self.generation_config.max_length = self.context_length
        super().save_pretrained(save_directory, **options)

    def predict(
        self,
        hidden: Float[Tensor, "B T D"],
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        state: Any,
        options: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """Apply the head to the last hidden states.

        With `skip_logits` among the options only the loss is computed, and the logits never stand
        in memory; `blend_targets` may soften its targets then. In float16 they do: the Trainer
        must scale the loss before small gradients are made.
        """
        head = self.get_output_embeddings()
        kind = hidden.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        if (
            labels is None
            or not options.get("skip_logits")
            or not is_unmodified(head, nn.Linear)
            or half
        ):
            return self.make_output(
                head(select_positions(hidden, logits_to_keep)), labels, state, options
            )
        targets = options.get("shift_labels")
        if targets is None:
            targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        items = options.get("num_items_in_batch")
        states, weight = hidden.flatten(0, 1), head.weight
        if head.bias is not None:  # as one more channel, which is always 1
            states, weight = (
                F.pad(states, (0, 1), value=1.0),
                torch.cat([weight, head.bias[:, None]], dim=1),
            )
        blend = options.get("blend_targets")
        loss = linear_cross_entropy(states, weight, targets.flatten(), items, blend)
        return CausalLMOutputWithPast(
            loss=loss, past_key_values=self._returned_state(state, options)
        )

    def make_output(
        self, logits: Tensor, labels: Tensor | None, state: Any, options: dict[str, Any]
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V) with the loss that Hugging Face defines for them.

        `options` may hold `shift_labels` (labels already moved by one), `num_items_in_batch` and
        `use_cache`. Without `use_cache` no state is returned, or `generate` would pass it in with
        the whole text. A key-value cache that the caller gave is returned in any case.
        """
        loss = None
        if labels is not None:
            known = {
                k: v for k, v in options.items() if k in ("shift_labels", "num_items_in_batch")
            }
            loss = ForCausalLMLoss(logits, labels, vocab_size=logits.shape[-1], **known)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=self._returned_state(state, options)
        )

    def _returned_state(self, state: Any, options: dict[str, Any]) -> Any:
        return state if options["use_cache"] or isinstance(state, Cache) else None


class StatefulModel(CausalModel):
    """A rung whose past is a `RecurrentState` of its own, not a key-value cache."""

    # Tells `generate` that no token of the past can be taken back, as drafting would need.
    _is_stateful = True

    @property
    def context_length(self) -> int | None:
        """None: the state has no end."""
        return None

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class CountingModel(StatefulModel):
    """A counting rung that looks up a token's probability without the whole distribution."""

    @property
    def is_normalized(self) -> bool:
        """Whether the model's numbers are probabilities."""
        return True

    def score_tokens(
        self, input_ids: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
        """log10 P of each token given those before it, and the order of the n-gram it was found in.

        The first token has no history. Documents may stand one after another: BOS follows nothing,
        so no n-gram reaches across it.
        """
        raise NotImplementedError

    def score(self, text: str, tokenizer: PreTrainedTokenizerBase) -> float:
        """log10 P of `text` as a document, its end included, as KenLM's `score`."""
        words = encode_ordinary(tokenizer, [text])[0].ids
        ids = torch.tensor(
            [tokenizer.bos_token_id, *words, tokenizer.eos_token_id], device=self.device
        )
        return self.score_tokens(ids)[0][1:].double().sum().item()


@dataclass
class RecurrentState:
    """A state after `length` tokens: tensors whose first axis is the batch."""

    tensors: tuple[Tensor, ...]
    length: int
    is_compileable = False  # Hugging Face asks it of every cache
    crop = refuse_to_crop

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows of the beams that survived."""
        self.tensors = tuple(t.index_select(0, beam_idx.to(t.device)) for t in self.tensors)


def check_finite(numbers: Tensor) -> None:
    """Raise `RunError` where the largest of the logits or costs is infinite or NaN.

    Weights that are too large make such numbers, and nothing chosen or scored by them has a
    meaning.
    """
    if numbers.numel() and not math.isfinite(largest := numbers.amax().item()):
        raise RunError(
            f"the model computes {largest} in place of a number: its weights are too large, as "
            "after training at too high a learning rate, or damaged; train it again at a lower one"
        )


def find_padding_idx(config: PreTrainedConfig) -> int | None:
    """The padding id, whose vector is never learned.

    None where the same token also begins or ends texts.
    """
    pad, ends = config.pad_token_id, config.eos_token_id
    others = [config.bos_token_id, *(ends if isinstance(ends, list) else [ends])]
    return pad if pad is not None and 0 <= pad < config.vocab_size and pad not in others else None


def embed(
    table: nn.Module, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Float[Tensor, "B T D"]:
    """Look the tokens up in the table of embeddings, unless the caller gives their vectors."""
    return table(input_ids) if inputs_embeds is None else inputs_embeds


def select_positions(
    hidden: Shaped[Tensor, "B T *rest"], logits_to_keep: int | Tensor
) -> Shaped[Tensor, "B kept *rest"]:
    """Select the positions whose logits are wanted: the last ones, all with 0, or a list."""
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    return hidden[:, logits_to_keep]


def non_padding_mask(
    tokens: Shaped[Tensor, "B T *rest"], attention_mask: Shaped[Tensor, "B S"] | None
) -> Bool[Tensor, "B T"]:
    """Mark the tokens, given as ids or vectors, that are not padding.

    A mask that covers the past too is cut to the last T. Raises `ValueError` for a mask that is too
    short.
    """
    batch, steps = tokens.shape[:2]
    if attention_mask is None:
        return torch.ones(batch, steps, dtype=torch.bool, device=tokens.device)
    if attention_mask.shape[1] < steps:
        raise ValueError(f"the attention mask covers {attention_mask.shape[1]} of {steps} tokens")
    return attention_mask[:, -steps:].bool()
