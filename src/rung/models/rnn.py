"""Rung 3: remember.

Below:   ngram.py tells histories apart but learns nothing from their likeness.
New:     tokens become vectors, and one vector carries what was read so far.
Missing: the whole past must fit that vector (rnn_attention.py looks back instead).
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.device import has_bfloat16_lstm
from rung.errors import RecipeError, did_you_mean
from rung.models.base import RecurrentState, StatefulModel, embed, non_padding_mask
from rung.models.config_checks import RungConfig
from rung.models.forward_options import Intermediates, accept_forward_options
from rung.models.initialization import init_embedding, init_recurrence

CELLS = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNNConfig(RungConfig):
    """`cell` is elman, gru or lstm; embeddings are as wide as the state, so a head can be tied.

    Embeddings of their own start with the standard deviation `embedding_range`: gates hardly open
    for smaller ones.
    """

    model_type = "rung-rnn"

    vocab_size: int = 1
    hidden_size: int = 256
    num_hidden_layers: int = 1
    cell: str = "lstm"
    dropout: float = 0.0  # of embeddings, between layers, and before the head
    head_bias: bool = False  # a number for each token, added to its logit
    initializer_range: float = 0.02
    embedding_range: float = 0.02
    max_position_embeddings: int = 256  # tokens of a training row; more can be read
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **options: Any) -> None:
        if self.cell not in CELLS:
            raise RecipeError(f"unknown cell {self.cell!r}: {did_you_mean(str(self.cell), CELLS)}")
        super().__post_init__(**options)


class RNNForCausalLM(StatefulModel):
    """Embedding, recurrent layers, head.

    Elman 1990 (elman); Hochreiter & Schmidhuber 1997 (lstm); Cho et al. 2014 (gru).
    """

    config_class = RNNConfig
    _tied_weights_keys = {"head.weight": "embedding.weight"}
    can_carry_state = True

    def __init__(self, config: RNNConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.recurrence = Recurrence(config)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

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
        past = past_key_values.tensors if past_key_values else None
        hidden, memory = self.recurrence(embedded, real, past, options["intermediates"])
        options["intermediates"].add_hidden_state(hidden)
        length = embedded.shape[1] + (past_key_values.length if past_key_values else 0)
        return self.predict(
            self.dropout(hidden), labels, logits_to_keep, RecurrentState(memory, length), options
        )


class Recurrence(nn.Module):
    """The recurrent layers, with a state that can be carried; padding anywhere is passed over.

    Dropout is between the layers, never between steps of time (Zaremba et al. 2014, section 3.2).
    The `elman` cell squashes with tanh.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.is_lstm = config.cell == "lstm"  # its type does not tell: the cell may be wrapped
        self.cell = CELLS[config.cell](
            config.hidden_size,
            config.hidden_size,
            config.num_hidden_layers,
            batch_first=True,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
        )

    def forward(
        self,
        embedded: Tensor,
        real: Tensor | None,
        past: tuple[Tensor, ...] | None,
        intermediates: Intermediates | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the states (B, T, D) and the memory after the last token, (B, layers, D) a part.

        `real` (B, T) is false on padding; None where there is none. The memory has the dtype of
        `embedded`, under autocast too, so that a pass in another precision can go on from it.
        """
        memory = (
            tuple(t.transpose(0, 1).to(embedded.dtype).contiguous() for t in past) if past else None
        )
        real = None if real is None or bool(real.all()) else real
        if intermediates is not None and intermediates.hidden_states is not None:
            self._record_hidden_states(embedded, real, memory, intermediates)
        hidden, memory = self._run_layers(self.cell, embedded, real, memory)
        return hidden, tuple(t.transpose(0, 1).to(embedded.dtype) for t in memory)

    def _record_hidden_states(
        self,
        hidden: Tensor,
        real: Tensor | None,
        memory: tuple[Tensor, ...] | None,
        intermediates: Intermediates,
    ) -> None:
        """Record the input of each layer, without dropout.

        The cell returns the last layer's states alone, so the layers are run one by one.
        """
        intermediates.add_hidden_state(hidden)
        for layer in range(self.cell.num_layers - 1):
            single = type(self.cell)(
                self.cell.input_size, self.cell.hidden_size, batch_first=True, device="meta"
            )
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(single, f"{name}_l0", getattr(self.cell, f"{name}_l{layer}"))
            before = tuple(t[layer : layer + 1].contiguous() for t in memory) if memory else None
            hidden, _ = self._run_layers(single, hidden, real, before)
            intermediates.add_hidden_state(hidden)

    def _run_layers(
        self,
        cell: nn.Module,
        embedded: Tensor,
        real: Tensor | None,
        memory: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if real is None:
            return self._run_cell(cell, embedded, memory)
        return self._run_padded(cell, embedded, real, memory)

    def _run_cell(
        self, cell: nn.Module, sequence: Any, memory: tuple[Tensor, ...] | None
    ) -> tuple[Any, tuple[Tensor, ...]]:
        start = memory if self.is_lstm or memory is None else memory[0]
        casts = torch.is_autocast_enabled("cpu") and (not self.is_lstm or has_bfloat16_lstm())
        with torch.autocast("cpu", enabled=casts):
            hidden, last = cell(sequence, start)
        return hidden, last if self.is_lstm else (last,)

    def _run_padded(
        self, cell: nn.Module, embedded: Tensor, real: Tensor, before: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        lengths = real.sum(dim=1)
        # B T: the text in its order, then the padding.
        order = real.int().argsort(dim=1, descending=True, stable=True)
        moved = embedded.gather(1, order[..., None].expand_as(embedded))
        packed = pack_padded_sequence(
            moved, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, after = self._run_cell(cell, packed, before)
        hidden, _ = pad_packed_sequence(hidden, batch_first=True, total_length=real.shape[1])
        hidden = hidden.gather(1, order.argsort(dim=1)[..., None].expand_as(hidden))
        # No packed row may be empty, so a row of padding alone has read a token. It gets its memory
        # from before back.
        before = before or tuple(map(torch.zeros_like, after))
        is_read = (lengths > 0)[None, :, None]
        return hidden, tuple(torch.where(is_read, a, b) for a, b in zip(after, before, strict=True))
