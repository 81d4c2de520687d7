"""What every rung owes Hugging Face: a loss, a state that `generate` can carry, logits kept or not.

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
from rung.models.forward_options import is_unmodified, refuse_continuous_batching, refuse_to_crop
from rung.models.fused import linear_cross_entropy

# 1 for tokens, 0 for padding; or which keys each query may look at.
AttentionMask = Shaped[Tensor, "B S"] | Shaped[Tensor, "#B 1 T S"]


class CausalModel(PreTrainedModel, GenerationMixin):
    """A Hugging Face causal language model; the base of every rung, never a rung itself."""

    supports_gradient_checkpointing = False
    _supports_sdpa = True
    init_continuous_batching = refuse_continuous_batching
    # Whether training may begin a stretch of text with the state that the one before left.
    can_carry_state = False

    def __init__(self, config: PreTrainedConfig, *args: Any, **options: Any) -> None:
        check_config(config)
        super().__init__(config, *args, **options)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Whether eager and sdpa may be exchanged at any time; here every call chooses by what is
        asked for.
        """
        return True

    @property
    def context_length(self) -> int | None:
        """How many tokens the model may look at; None when its state carries on for ever."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def max_context_length(self) -> int | None:
        """How many tokens it can read at once; more than it was trained on where its positions
        allow it.
        """
        return self.context_length

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """As Hugging Face does; whoever opens the folder, without rung too, stops writing where the
        window ends.
        """
        if self.context_length and self.generation_config:
            self.generation_config.max_length = self.context_length
        super().save_pretrained(save_directory, **options)

    def embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None
    ) -> Float[Tensor, "B T D"]:
        """Vectors of tokens, unless the caller has them already."""
        return self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds

    def predict(
        self,
        hidden: Float[Tensor, "B T D"],
        labels: Tensor | None,
        logits_to_keep: int | Tensor,
        state: Any,
        options: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """What the head makes of the last hidden states: `make_output` of its logits.

        With `skip_logits` among the options the loss alone is made, and the logits never stand in
        memory; but in float16, whose small gradients the Trainer must scale up before they are
        made.
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
        if head.bias is not None:  # one more channel, which is always 1
            states, weight = (
                F.pad(states, (0, 1), value=1.0),
                torch.cat([weight, head.bias[:, None]], dim=1),
            )
        loss = linear_cross_entropy(states, weight, targets.flatten(), items)
        return CausalLMOutputWithPast(loss=loss, past_key_values=self._kept(state, options))

    def make_output(
        self, logits: Tensor, labels: Tensor | None, state: Any, options: dict[str, Any]
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) with the loss that Hugging Face defines for them.

        `options` may hold `shift_labels` (labels already moved by one), `num_items_in_batch`, and
        `use_cache`: where that is false no state is handed out, for `generate` would give it back
        beside the whole text. A key-value cache is the caller's own then, and goes back as it does
        in transformers.
        """
        loss = None
        if labels is not None:
            known = {
                k: v for k, v in options.items() if k in ("shift_labels", "num_items_in_batch")
            }
            loss = ForCausalLMLoss(logits, labels, vocab_size=logits.shape[-1], **known)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=self._kept(state, options)
        )

    def _kept(self, state: Any, options: dict[str, Any]) -> Any:
        return state if options["use_cache"] or isinstance(state, Cache) else None


class StatefulModel(CausalModel):
    """A rung whose past is a `RecurrentState` of its own, not a key-value cache."""

    _is_stateful = (
        True  # nothing of the past can be taken back, so `generate` refuses to draft tokens ahead
    )

    @property
    def context_length(self) -> int | None:
        """None: the state carries on for ever."""
        return None

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class CountingModel(StatefulModel):
    """A rung that looks a token's cost up, without the whole distribution."""

    @property
    def is_normalized(self) -> bool:
        """Whether its numbers are probabilities."""
        return True

    def score_tokens(
        self, input_ids: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
        """log10 P of each token given those before it, and the order it was found at; the first has
        no history.

        Documents may stand one after another: BOS follows nothing, so nothing is looked up across
        it.
        """
        raise NotImplementedError

    def score(self, text: str, tokenizer: PreTrainedTokenizerBase) -> float:
        """log10 of the probability (or the scores) of `text` as a document, its end included, as
        KenLM's `score`.
        """
        words = encode_ordinary(tokenizer, [text])[0].ids
        ids = torch.tensor(
            [tokenizer.bos_token_id, *words, tokenizer.eos_token_id], device=self.device
        )
        return self.score_tokens(ids)[0][1:].double().sum().item()


@dataclass
class RecurrentState:
    """What a rung remembers of the tokens so far: tensors with the batch first, and how many
    tokens.
    """

    tensors: tuple[Tensor, ...]
    length: int
    is_compileable = False  # as Hugging Face asks a cache
    crop = refuse_to_crop

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, as Hugging Face asks a cache."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams that survived."""
        self.tensors = tuple(t.index_select(0, beam_idx.to(t.device)) for t in self.tensors)


class KVCache(Cache):
    """Keys and values of up to `room` tokens, in memory that each layer takes once, with the first
    of them.

    `rows` holds keys and values (B, G, room, K) of every layer; `length` tokens of them are there.
    """

    def __init__(self, room: int) -> None:
        super().__init__(layers=[])
        self.room = room
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.length = 0
        self.written = 0  # tokens behind `length` that the layers so far have written

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, G, T, K) behind what is there; all of it comes back."""
        if layer_idx == 0:
            self.length, self.written = self.length + self.written, key_states.shape[2]
        if layer_idx == len(self.rows):
            shape = (*key_states.shape[:2], self.room, key_states.shape[3])
            self.rows.append((key_states.new_zeros(shape), value_states.new_zeros(shape)))
        keys, values = self.rows[layer_idx]
        keys.narrow(2, self.length, self.written).copy_(key_states)
        values.narrow(2, self.length, self.written).copy_(value_states)
        end = self.length + self.written
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, as Hugging Face asks a cache."""
        return self.length + self.written

    def crop(self, max_length: int) -> None:
        """Forget the tokens after the first `max_length`."""
        self.length, self.written = min(self.get_seq_length(), max_length), 0


def is_loaded(parameter: Tensor) -> bool:
    """Whether its values came from a checkpoint, so that no initialisation may touch them."""
    return getattr(parameter, "_is_hf_initialized", False)


def check_finite(numbers: Tensor) -> None:
    """Raise `RunError` where the largest of the logits or costs that a model computed is no number:
    weights that are too large for what is summed up over them. Nothing that is chosen or scored by
    such numbers means anything.
    """
    if numbers.numel() and not math.isfinite(largest := numbers.amax().item()):
        raise RunError(
            f"the model computes {largest} in place of a number: its weights are too large, as "
            f"after "
            "training at too high a learning rate, or damaged; train it again at a lower one"
        )


def find_padding_idx(config: PreTrainedConfig) -> int | None:
    """The id whose vector is never learned: padding's, unless the same token also begins or ends
    texts.
    """
    pad, ends = config.pad_token_id, config.eos_token_id
    others = [config.bos_token_id, *(ends if isinstance(ends, list) else [ends])]
    return pad if pad is not None and 0 <= pad < config.vocab_size and pad not in others else None


def select_positions(
    hidden: Shaped[Tensor, "B T *rest"], logits_to_keep: int | Tensor
) -> Shaped[Tensor, "B kept *rest"]:
    """The last positions that logits are wanted for; 0 keeps all."""
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    return hidden[:, logits_to_keep]


def non_padding_mask(
    tokens: Shaped[Tensor, "B T *rest"], attention_mask: Shaped[Tensor, "B S"] | None
) -> Bool[Tensor, "B T"]:
    """Which of the tokens, ids or vectors, are text and not padding; a mask that covers the past is
    cut to T.

    Raises `ValueError` for a mask that is too short.
    """
    batch, steps = tokens.shape[:2]
    if attention_mask is None:
        return torch.ones(batch, steps, dtype=torch.bool, device=tokens.device)
    if attention_mask.shape[1] < steps:
        raise ValueError(f"the attention mask covers {attention_mask.shape[1]} of {steps} tokens")
    return attention_mask[:, -steps:].bool()
