"""Look rows up in sorted tables, many at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor


def lower_bound(
    read: Callable[[Tensor], Tensor],
    begin: Int[Tensor, " N"],
    end: Int[Tensor, " N"],
    wanted: Int[Tensor, " N"],
) -> Int[Tensor, " N"]:
    """The first row from each `begin` to `end` whose value is not below `wanted`, else `end`.

    These are N binary searches at once. `read` gives the values of rows; they must rise from
    `begin` to `end`.
    """
    low = begin
    longest = int((end - begin).max()) if len(begin) else 0
    for bit in reversed(range(longest.bit_length())):  # the row is less than 2 << bit ahead
        probe = torch.minimum(low + ((1 << bit) - 1), end - 1).clamp_(min=0)
        low = torch.where(read(probe) < wanted, probe + 1, low)
    return torch.minimum(low, end)


def expand_ranges(
    begin: Int[Tensor, " N"], end: Int[Tensor, " N"]
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
    """List every row from begin[i] up to end[i], for all i, as (i, row) pairs."""
    lengths = (end - begin).long()
    places = torch.repeat_interleave(torch.arange(len(begin), device=begin.device), lengths)
    before = lengths.cumsum(0) - lengths
    return places, torch.arange(len(places), device=begin.device) + (begin - before)[places]
