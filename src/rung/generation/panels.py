"""Lay matrices out as `step.c` reads them: from one end of memory to the other."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def make_panels(weight: Shaped[Tensor, "N D"], lanes: int, wide: int) -> Shaped[Tensor, " M"]:
    """Put the rows into blocks of `lanes`, and the blocks into panels of `wide`.

    Of each column, or pair of columns of a type narrower than float32, a panel holds the weights of
    its blocks side by side; those of a pair stand beside each other. The last panel is narrower
    where there are no more blocks. Zeros fill the last block and the last pair.
    """
    together = 1 if weight.dtype == torch.float32 else 2
    filled = fill_rows(fill_rows(weight, lanes).T, together).T
    blocks = filled.unflatten(0, (-1, lanes)).unflatten(2, (-1, together))
    whole = len(blocks) // wide * wide
    parts = [(blocks[:whole], wide), (blocks[whole:], len(blocks) - whole)]
    return torch.cat(
        [
            part.unflatten(0, (-1, count)).permute(0, 3, 1, 2, 4).flatten()
            for part, count in parts
            if len(part)
        ]
    )


def fill_rows(rows: Shaped[Tensor, "N *D"], multiple: int) -> Shaped[Tensor, "M *D"]:
    """Fill up with zeros to a multiple of so many rows."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
