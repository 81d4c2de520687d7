"""Rung 4: look back.

Below:   rnn.py squeezes the whole past into one vector.
New:     look back at every earlier state, weighted by how well it matches.
Missing: still steps through time, one token after another (gpt2.py does not).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.models.base import AttentionMask, RecurrentState, StatefulModel, non_padding_mask
from rung.models.forward_options import Intermediates, accept_forward_options
from rung.models.rnn import Recurrence, RNNConfig, init_recurrence


class RNNAttentionConfig(RNNConfig):
    """An RNN's configuration, over how many heads its states are compared, and whether as they are.

    With `plain_attention` a state is its own query, key and value, and what attention finds takes
    its place: nothing is projected, and nothing added to the state. So it is in the book's chapter;
    it learns less (`recipes/book`).
    """

    model_type = "rung-rnn-attention"

    num_attention_heads: int = 1
    plain_attention: bool = False


class RNNAttentionForCausalLM(StatefulModel):
    """Recurrent states, then scaled dot-product attention of each over itself and all earlier ones,
    then the head.

    Attention: Bahdanau et al. 2015; in this form Vaswani et al. 2017, section 3.2.1. Dropout is
    where rnn.py has it.
    """

    config_class = RNNAttentionConfig
    _tied_weights_keys = {"head.weight": "embedding.weight"}

    def __init__(self, config: RNNAttentionConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.recurrence = Recurrence(config)
        if not config.plain_attention:
            self.query_key_value = nn.Linear(width, 3 * width, bias=False)
            self.mix = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, config.vocab_size, bias=config.head_bias)
        self.post_init()

    @property
    def context_length(self) -> int:
        """It looks back as far as it was trained to."""
        return self.config.max_position_embeddings

    def get_input_embeddings(self) -> nn.Module:
        """The table that ids are looked up in."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another table in its place."""
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The layer that makes logits."""
        return self.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Put another head in its place."""
        self.head = value

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_recurrence(module)

    @accept_forward_options
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Shaped[Tensor, "B S"] | None = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) of the token after each of `input_ids` (B, T), or of their vectors
        `inputs_embeds`.
        """
        embedded = self.dropout(self.embed(input_ids, inputs_embeds))  # B T D
        real = non_padding_mask(embedded, attention_mask) if attention_mask is not None else None
        past = past_key_values.tensors if past_key_values else ()
        hidden, memory = self.recurrence(embedded, real, past[2:] or None, options["intermediates"])
        plain = self.config.plain_attention
        compared = [hidden] * 3 if plain else self.query_key_value(hidden).chunk(3, -1)
        q, k, v = (split_heads(t, self.config.num_attention_heads) for t in compared)
        if past:
            k, v = (
                torch.cat([old.to(new), new], dim=2)
                for old, new in zip(past[:2], (k, v), strict=True)
            )  # B H S K
        seen = attend_and_record(
            q, k, v, causal_mask(attention_mask, q.shape[2], k.shape[2]), options["intermediates"]
        )
        hidden = join_heads(seen) if plain else hidden + self.mix(join_heads(seen))
        options["intermediates"].add_hidden_state(hidden)
        return self.predict(
            self.dropout(hidden),
            labels,
            logits_to_keep,
            RecurrentState((k, v, *memory), k.shape[2]),
            options,
        )


def split_heads(x: Float[Tensor, "B T HK"], heads: int) -> Float[Tensor, "B H T K"]:
    """Each head's channels on an axis of their own."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B T HK"]:
    """The heads' channels side by side again."""
    return x.transpose(1, 2).flatten(2)


def causal_mask(
    attention_mask: AttentionMask | None, queries: int, keys: int
) -> Bool[Tensor, "#B 1 T keys"] | None:
    """Which keys each query may look at; None where plain causality says it all.

    The queries are the last `queries` of the `keys`. Padding sees itself, so that no row is empty.
    A mask that is made already, one key for each query, is kept.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return as_boolean_mask(attention_mask[..., :keys])
    if attention_mask is None or bool(attention_mask.all()):
        if queries in (1, keys):
            return None
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if attention_mask.shape[1] != keys:
        raise ValueError(
            f"the attention mask covers {attention_mask.shape[1]} of {keys} tokens: it must cover "
            f"the past"
        )
    key = torch.arange(keys, device=attention_mask.device)
    query = key[keys - queries :, None]
    return (((key <= query) & attention_mask[:, None, :].bool()) | (key == query))[:, None]


def as_boolean_mask(mask: Shaped[Tensor, "#B 1 T S"]) -> Bool[Tensor, "#B 1 T S"]:
    """A mask as truth values, where transformers may give what it adds to scores: 0, or the least
    number there is.

    Raises `ValueError` for numbers in between: no kernel here adds them.
    """
    if not mask.is_floating_point():
        return mask.bool()
    if bool(((mask != 0) & (mask > torch.finfo(mask.dtype).min / 2)).any()):
        raise ValueError(
            "attention_mask holds numbers to add to scores: only 0 and the least number are known "
            "here"
        )
    return mask == 0


def attend_and_record(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "#B 1 T S"] | None,
    intermediates: Intermediates,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """As `attend`; where the weights (B, H, T, S) are asked for, step by step, for no fused kernel
    hands them out.
    """
    if intermediates.attentions is None:
        return attend(q, k, v, mask, dropout)
    queries, keys = q.shape[2], k.shape[2]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask.to(q.device), torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(v.dtype), dropout)
    intermediates.attentions.append(weights)
    return weights @ v


def attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "#B 1 T S"] | None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """softmax(q kᵀ / √K) v; the G key heads may be fewer than the H query heads, and divide them.

    No key is ever repeated: where the kernel at hand would, a group's queries become rows of one
    key head.
    """
    if dropout == 0 and _prefers_unfused(q, k):
        return _attend_unfused(q, k, v, mask)
    mask = mask.to(q.device) if mask is not None else None
    grouped = k.shape[1] != q.shape[1]
    if grouped and (q.shape[2] == 1 or dropout or (mask is not None and q.device.type != "cpu")):
        return _attend_grouped(q, k, v, mask, dropout)
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """One token's queries of a group read its keys together: faster too
    (benchmarks/models/grouped.py).
    """
    queries, groups = q.shape[2], q.shape[1] // k.shape[1]
    if queries > 1:
        mask = (
            torch.ones(queries, k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
            if mask is None
            else mask
        )
        mask = mask.repeat(1, 1, groups, 1)
    rows = q.unflatten(1, (-1, groups)).flatten(2, 3)  # B G RT K, R queries a group
    x = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, dropout_p=dropout)
    return x.unflatten(2, (groups, queries)).flatten(1, 2)


def _prefers_unfused(q: Tensor, k: Tensor) -> bool:
    """Where plain bfloat16 products beat the fused kernel, up to 512 tokens
    (benchmarks/models/attention.py).
    """
    return (
        q.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and q.shape[2] == k.shape[2] <= 512
    )


def _attend_unfused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """A group's queries stand one below another, over the keys that they share."""
    (batch, heads, steps, size), shared = q.shape, k.shape[1]
    groups = heads // shared
    hidden = torch.ones(1, 1, steps, steps, dtype=torch.bool).triu(1) if mask is None else ~mask
    hidden = torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill_(hidden, float("-inf"))
    hidden = hidden.repeat(1, 1, groups, 1)
    one = len(hidden) == 1  # for all rows of the batch
    hidden = (
        hidden[0].expand(batch * shared, -1, -1)
        if one
        else hidden.expand(-1, shared, -1, -1).flatten(0, 1)
    )
    q, k, v = q.reshape(batch * shared, groups * steps, size), k.flatten(0, 1), v.flatten(0, 1)
    scores = torch.baddbmm(hidden, q, k.mT, alpha=size**-0.5)
    return (scores.softmax(-1, dtype=scores.dtype) @ v).reshape(batch, heads, steps, size)
