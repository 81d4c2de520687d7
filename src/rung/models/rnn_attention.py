"""Rung 4: look back.

Below:   rnn.py squeezes the whole past into one vector.
New:     look back at every earlier state, weighted by how well it matches.
Missing: still steps through time, one token after another (gpt2.py does not).
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.models.attention import attend_and_record, causal_mask, join_heads, split_heads
from rung.models.base import RecurrentState, StatefulModel, embed, non_padding_mask
from rung.models.forward_options import accept_forward_options
from rung.models.initialization import init_embedding, init_recurrence
from rung.models.rnn import Recurrence, RNNConfig


class RNNAttentionConfig(RNNConfig):
    """An RNN's configuration, with the heads of its attention.

    With `plain_attention` a state is its own query, key and value, and the result of attention
    replaces it: nothing is projected, nothing is added. This is the model of the book's chapter; it
    learns less (`recipes/book`).
    """

    model_type = "rung-rnn-attention"

    num_attention_heads: int = 1
    plain_attention: bool = False


class RNNAttentionForCausalLM(StatefulModel):
    """Recurrent layers, attention of each state over itself and all earlier ones, head.

    Attention is Bahdanau et al. 2015's, scaled dot products Vaswani et al. 2017's (section 3.2.1).
    Dropout is where rnn.py has it.
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
        return self.window or self.config.max_position_embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.head = value

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_recurrence(module)
        if module is self.embedding and not self.config.tie_word_embeddings:
            init_embedding(self.embedding, self.config.embedding_range)

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
        """Return logits (B, T, V) of the token after each one given, by id or by vector."""
        embedded = self.dropout(embed(self.embedding, input_ids, inputs_embeds))  # B T D
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
