"""Fitting a counting rung: which engine counts, what it goes on from, and what is said
meanwhile.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rung import __version__, runs
from rung.data.packing import PackedTokens
from rung.device import keep_freed_memory
from rung.models import find_rung, make_config
from rung.models.base import CausalModel
from rung.models.ngram.checkpoints import OrderCheckpoints
from rung.models.ngram.counting import CountFunction, IntArray, TrieLevels
from rung.models.ngram.counting_settings import CountingSettings
from rung.models.ngram.engines import choose_count_function
from rung.progress import OnProgress, Progress
from rung.recipe import Recipe


def fit_counts(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedTokens,
    key: str,
    folder: Path,
    on_progress: OnProgress,
) -> CausalModel:
    """The recipe's counting rung of the text that is packed under `key`, for the run in `folder`.

    A long count goes on from the orders that an earlier try has left there.
    """
    config = make_config(recipe.rung, tokenizer, recipe.model)
    counting = CountingSettings(**recipe.counting)
    if counting.engine == "numpy":
        keep_freed_memory()
    else:
        on_progress(Progress(stage="noted", note=counting.describe(len(packed), config.order)))
    on_progress(Progress(stage="counting"))
    rung = find_rung(recipe.rung)
    if recipe.rung != "ngram":
        return rung.model_class.fit(config, packed.tokens, packed.starts)
    checkpoints = None
    if counting.keeps_checkpoints(len(packed)):
        facts = _describe_count(counting, config, packed, key)
        checkpoints = OrderCheckpoints(folder / runs.CHECKPOINTS, facts)
        if (highest := checkpoints.highest) > 1:
            going_on = f", going on with {highest + 1}" if highest < config.order else ""
            on_progress(Progress(stage="noted", note=f"orders 1 to {highest} are kept{going_on}"))
    count = choose_count_function(counting, counting.scratch_folder(folder), checkpoints)
    return rung.model_class.fit(
        config, packed.tokens, packed.starts, count=_follow(count, on_progress)
    )


def _describe_count(
    counting: CountingSettings, config: PreTrainedConfig, packed: PackedTokens, key: str
) -> dict[str, Any]:
    """By what the orders of this count are told from those of another."""
    return {
        "rung": __version__,
        "text": key,
        "tokens": len(packed),
        "documents": len(packed.starts),
        "vocab_size": config.vocab_size,
        "order": config.order,
        "engine": counting.engine,
    }


def _follow(count: CountFunction, on_progress: OnProgress) -> CountFunction:
    """Count as `count` does, and tell of every order."""

    def follow(
        tokens: IntArray, starts: NDArray[numpy.int64], order: int, vocab_size: int
    ) -> TrieLevels:
        with closing(count(tokens, starts, order, vocab_size)) as levels:
            for number, level in enumerate(levels, start=1):
                on_progress(
                    Progress(
                        stage="counting", note=f"order {number} of {order}: {len(level):,} n-grams"
                    )
                )
                yield level

    return follow
