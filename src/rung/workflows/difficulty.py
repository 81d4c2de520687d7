"""How hard a text is, as counting finds in a second: with an n-gram model, and with one that also
copies.

What a small model will reach lies between the two: the nearer to the second, the better it has
learned to copy.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung.data.packing import PackedTokens
from rung.evaluation.documents import tokenize_documents
from rung.evaluation.likelihood import compute_nll
from rung.models import find_rung, make_config
from rung.models.base import CausalModel
from rung.training.clock import now

COUNTED_TOKENS = 2_000_000  # of the text that the n-gram model is fitted to
FIRST_TOKENS = COUNTED_TOKENS // 16  # of them, to see how long it takes
MATCHES = (4, 3, 2, 1)  # tokens before the present that are looked for, the most first


@dataclass(frozen=True)
class Counted:
    """Bits per byte of a text: of the n-gram rung, and of it where what followed before is also
    believed.
    """

    plain: float
    copying: float


def count_text(
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedTokens,
    texts: Sequence[str],
    reach: int,
    seconds: float = math.inf,
) -> Counted:
    """Of `texts`, for an n-gram rung fitted to the first tokens of `packed`; copies come from
    `reach` tokens back.

    The rung is fitted to no more tokens than it can be in so many seconds, nor to fewer than a few.
    """
    began = now()
    model = _fit(tokenizer, packed, FIRST_TOKENS)
    took = now() - began
    affordable = FIRST_TOKENS * (seconds - took) / max(took, 1e-9)
    if len(packed) > FIRST_TOKENS and affordable > 2 * FIRST_TOKENS:
        model = _fit(tokenizer, packed, min(COUNTED_TOKENS, affordable))
    documents = list(tokenize_documents(texts, tokenizer))
    costs = compute_nll(model, [d.ids for d in documents])
    copied = copy_nats(zip((d.ids for d in documents), costs, strict=True), reach)
    spelling, bits = (
        sum(d.spelling for d in documents),
        math.log(2) * sum(d.bytes for d in documents),
    )
    plain, copying = (
        sum(nats.double().sum().item() for nats in each) + spelling for each in (costs, copied)
    )
    return Counted(plain / bits, copying / bits)


def _fit(tokenizer: PreTrainedTokenizerBase, packed: PackedTokens, most: float) -> CausalModel:
    """An n-gram rung of the first documents, those with so many tokens."""
    end = max(1, int(numpy.searchsorted(packed.starts, most)))
    tokens = packed.tokens[: packed.starts[end]] if end < len(packed.starts) else packed.tokens
    config = make_config("ngram", tokenizer, {})
    return find_rung("ngram").model_class.fit(config, tokens, packed.starts[:end]).eval()


def copy_nats(
    documents: Iterable[tuple[Sequence[int], Float[Tensor, " N"]]], reach: int
) -> Iterator[Float[Tensor, " N"]]:
    """The cost of each token but the first, where the longest match within `reach` tokens has a
    say.

    What followed the match is believed as far as such matches were right so far: p = (1 - r) p + r
    [it is the token]. The match model of compressors (Mahoney 2005).
    """
    right = {length: [1.0, 2.0] for length in MATCHES}  # of how many
    for ids, nats in documents:
        followed: dict[tuple[int, ...], int] = {}  # the place behind the last such tokens
        chances = (-nats.double()).exp()
        for place in range(1, len(ids)):
            contexts = {
                length: tuple(ids[place - length : place]) for length in MATCHES if length <= place
            }
            found = next(
                (n for n, c in contexts.items() if place - followed.get(c, -reach) < reach), None
            )
            if found:
                hits, tries = right[found]
                hit = ids[followed[contexts[found]]] == ids[place]
                chances[place - 1] *= 1 - hits / tries
                chances[place - 1] += hit * hits / tries
                right[found] = [hits + hit, tries + 1]
            followed.update(dict.fromkeys(contexts.values(), place))
        yield -torch.log(chances)
