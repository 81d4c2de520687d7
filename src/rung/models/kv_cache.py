"""A key-value cache whose memory is taken once."""

from typing import Any

from torch import Tensor
from transformers import Cache


class KVCache(Cache):
    """Keys and values of up to `capacity` tokens.

    Each layer takes its memory with its first tokens. `keys_values` holds keys and values
    (B, G, capacity, K) of every layer, of which the first `length` tokens are there.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(layers=[])
        self.capacity = capacity
        self.keys_values: list[tuple[Tensor, Tensor]] = []
        self.length = 0
        self.written = 0  # tokens behind `length` that the layers so far have written

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, G, T, K), and return all that the layer has."""
        if layer_idx == 0:
            self.length, self.written = self.length + self.written, key_states.shape[2]
        if layer_idx == len(self.keys_values):
            shape = (*key_states.shape[:2], self.capacity, key_states.shape[3])
            self.keys_values.append((key_states.new_zeros(shape), value_states.new_zeros(shape)))
        keys, values = self.keys_values[layer_idx]
        keys.narrow(2, self.length, self.written).copy_(key_states)
        values.narrow(2, self.length, self.written).copy_(value_states)
        end = self.length + self.written
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length + self.written

    def crop(self, max_length: int) -> None:
        """Forget the tokens after the first `max_length`."""
        self.length, self.written = min(self.get_seq_length(), max_length), 0
