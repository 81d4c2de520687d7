"""How hard a text is: the bits per byte of an n-gram model, and of one that also copies.

A small model reaches a value between the two: the nearer to the second, the better it has learned
to copy.
"""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

import numpy
import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung import __version__
from rung.data.packing import PackedTokens
from rung.evaluation.documents import tokenize_documents
from rung.evaluation.likelihood import compute_nll
from rung.files import cache_folder, read_cached_value, write_cached_value
from rung.models import find_rung, make_config
from rung.models.base import CausalModel
from rung.models.ngram.counting_settings import BUILD_BYTES_PER_NGRAM
from rung.training.clock import now
from rung.workflows.prepare import PreparedText, sample_validation

logger = logging.getLogger(__name__)

# Tokens of the text that the laws' n-gram model is fitted to, and those that it is timed on first.
FITTED_TOKENS = 2_000_000
FIRST_TOKENS = FITTED_TOKENS // 16
# All of the text is counted where that takes no more than this share of the memory that is free.
COUNTED_MEMORY = 0.5
# How many tokens before the present one are looked for, the most first.
MATCH_LENGTHS = (4, 3, 2, 1)


@dataclass(frozen=True)
class Difficulty:
    """Bits per byte of a text for the n-gram rung, without and with a match model.

    Both are of the first `FITTED_TOKENS` tokens, as the scaling laws want it. `whole` is of an
    n-gram rung of all tokens, where time and memory allow. `is_final` is whether there was time.
    """

    ngram: float
    copying: float
    whole: float
    is_final: bool = False


def find_difficulty(prepared: PreparedText, reach: int, seconds: float) -> Difficulty | None:
    """Measure the difficulty of a run's validation text, once; later it is read from the cache.

    One that time cut short is measured again. None where counting fails, which must not cost the
    run.
    """
    parts = [part.name for part in fields(Difficulty)]
    facts = f"{__version__} {parts} {prepared.packed_key} {len(prepared.packed)} {reach}"
    name = hashlib.sha256(facts.encode()).hexdigest()[:16]
    kept = cache_folder() / "difficulties" / name
    if found := read_cached_value(kept):
        return Difficulty(**found)
    assert prepared.corpus is not None
    texts = sample_validation(prepared.corpus)
    try:
        found = measure_difficulty(prepared.tokenizer, prepared.packed, texts, reach, seconds)
    except Exception as error:
        logger.warning(
            "the text could not be counted (%s): the size follows from the minutes alone", error
        )
        return None
    if found.is_final:
        write_cached_value(kept, asdict(found))
    return found


def measure_difficulty(
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedTokens,
    texts: Sequence[str],
    reach: int,
    seconds: float = math.inf,
) -> Difficulty:
    """Measure the difficulty of `texts` by n-gram rungs of the first tokens, and of all.

    Matches are looked for `reach` tokens back. The rung is fitted to as many tokens as it can be in
    so many seconds, and to a few at the least.
    """
    began = now()
    model = _fit(tokenizer, packed, FIRST_TOKENS)
    took = now() - began
    affordable = FIRST_TOKENS * (seconds - took) / max(took, 1e-9)
    if len(packed) > FIRST_TOKENS and affordable > 2 * FIRST_TOKENS:
        model = _fit(tokenizer, packed, min(FITTED_TOKENS, affordable))
    documents = list(tokenize_documents(texts, tokenizer))
    ids = [d.ids for d in documents]
    costs = compute_nll(model, ids)
    copied = nats_with_copying(zip(ids, costs, strict=True), reach)

    def count_bits(nats: Iterable[Float[Tensor, " N"]]) -> float:
        spent = sum(each.double().sum().item() for each in nats)
        spelled = spent + sum(d.spelling for d in documents)
        return spelled / (math.log(2) * sum(d.bytes for d in documents))

    ngram = whole = count_bits(costs)
    is_final = min(FITTED_TOKENS, len(packed)) <= max(FIRST_TOKENS, affordable)
    if len(packed) > FITTED_TOKENS and _fits_memory(model, len(packed)):
        is_final = FITTED_TOKENS + len(packed) <= affordable
        if is_final:
            whole = count_bits(compute_nll(_fit(tokenizer, packed, len(packed)), ids))
    return Difficulty(ngram, count_bits(copied), whole, is_final=is_final)


def _fit(tokenizer: PreTrainedTokenizerBase, packed: PackedTokens, most: float) -> CausalModel:
    """Fit an n-gram rung to the first documents, those with so many tokens."""
    end = max(1, int(numpy.searchsorted(packed.starts, most)))
    tokens = packed.tokens[: packed.starts[end]] if end < len(packed.starts) else packed.tokens
    config = make_config("ngram", tokenizer, {})
    return find_rung("ngram").model_class.fit(config, tokens, packed.starts[:end]).eval()


def _fits_memory(model: CausalModel, tokens: int) -> bool:
    """Whether an n-gram rung like this one of so many tokens takes a part of the free memory."""
    most = BUILD_BYTES_PER_NGRAM * (model.config.order - 1) * tokens
    return most <= COUNTED_MEMORY * psutil.virtual_memory().available


def nats_with_copying(
    documents: Iterable[tuple[Sequence[int], Float[Tensor, " N"]]], reach: int
) -> Iterator[Float[Tensor, " N"]]:
    """Yield the nats of each token but the first, with a match model mixed in.

    What followed the longest match within `reach` tokens is believed as far as such matches were
    right so far: p = (1 - r) p + r [it is the token]. The match model of compressors (Mahoney
    2005).
    """
    right = {length: [1.0, 2.0] for length in MATCH_LENGTHS}  # of how many
    for ids, nats in documents:
        followed: dict[tuple[int, ...], int] = {}  # the place behind the last such tokens
        chances = (-nats.double()).exp()
        for place in range(1, len(ids)):
            contexts = {
                length: tuple(ids[place - length : place])
                for length in MATCH_LENGTHS
                if length <= place
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
