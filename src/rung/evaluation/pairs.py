"""Score minimal pairs: how often a model finds the good sentence likelier than the bad one.

A sentence is read after BOS and a space, as a sentence in running text follows one, and as the
`blimp` tasks of lm-evaluation-harness read it. Its cost is the sum of its tokens' negative
log-likelihoods, in float64, without the end token, and the spelling of its unknown words and
dropped text, as the ruler charges it. The sentence that costs less is chosen (Warstadt et al.
2020). Equal costs are a tie, which counts half.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung.data.pairs import MinimalPair
from rung.evaluation.documents import batch_documents, spelling_cost, tokenize_documents
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.metrics import wilson_interval
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress, ignore_progress

SENTENCE_PREFIX = " "  # stands before each sentence
SENTENCES_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """A pair and the costs of its sentences in nats; `spelled` are its words that were spelled."""

    pair: MinimalPair
    good: float
    bad: float
    spelled: int

    @property
    def is_tie(self) -> bool:
        """Return whether both sentences cost the same; both may be impossible."""
        return self.good == self.bad

    @property
    def credit(self) -> float:
        """Return 1 where the good sentence costs less, 0 where it costs more, 1/2 for a tie."""
        return 0.5 if self.is_tie else float(self.good < self.bad)


@dataclass(frozen=True, kw_only=True)
class PairAccuracy:
    """The share of pairs whose good sentence was chosen, and the ends of its 95% interval."""

    accuracy: float
    low: float
    high: float
    pairs: int
    ties: int


def score_pairs(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[MinimalPair],
    on_progress: OnProgress = ignore_progress,
) -> list[PairScore]:
    """Score both sentences of each pair.

    Raises `RunError` where a model that learned by gradients returns a value that is no number.
    """
    sentences = dict.fromkeys(text for pair in pairs for text in (pair.good, pair.bad))
    costs = _score_sentences(model, tokenizer, sentences, on_progress)
    return [
        PairScore(
            pair=pair,
            good=costs[pair.good][0],
            bad=costs[pair.bad][0],
            spelled=costs[pair.good][1] + costs[pair.bad][1],
        )
        for pair in pairs
    ]


def _score_sentences(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: dict[str, None],
    on_progress: OnProgress,
) -> dict[str, tuple[float, int]]:
    """Return the nats of each sentence, and how many of its words were spelled.

    The sums are exact, so that they do not depend on the order of the terms. Sentences of the same
    tokens are scored once: in two batches they might differ in the last bit, and be no tie.
    """
    known: dict[tuple[int, ...], float] = {}
    costs: list[tuple[float, int]] = []
    documents = tokenize_documents((SENTENCE_PREFIX + text for text in sentences), tokenizer)
    for batch in batch_documents(documents, SENTENCES_AT_ONCE):
        keys = [tuple(document.ids) for document in batch]
        new = [list(key) for key in dict.fromkeys(keys) if key not in known]
        for ids, nats in zip(new, compute_nll(model, new) if new else [], strict=True):
            has_end = ids[-1] == tokenizer.eos_token_id
            known[tuple(ids)] = math.fsum(nats.tolist()[: len(nats) - has_end])
        for key, document in zip(keys, batch, strict=True):
            spelled = [*document.unknown, *document.dropped]
            costs.append((math.fsum([known[key], *map(spelling_cost, spelled)]), len(spelled)))
        on_progress(Progress("scoring", len(costs), len(sentences)))
    return dict(zip(sentences, costs, strict=True))


def measure_accuracy(scores: Sequence[PairScore]) -> PairAccuracy:
    """Return the accuracy over some pairs.

    The interval is Wilson's (1927), over different pairs: copies of a pair count as one for it. It
    takes the pairs as drawn from all pairs of their kinds; for ties it is on the wide side.
    """
    accuracy = math.fsum(score.credit for score in scores) / len(scores)
    different = len({(score.pair.good, score.pair.bad) for score in scores})
    low, high = wilson_interval(accuracy, different)
    return PairAccuracy(
        accuracy=accuracy,
        low=low,
        high=high,
        pairs=len(scores),
        ties=sum(score.is_tie for score in scores),
    )


def measure_groups(
    scores: Iterable[PairScore], key: Callable[[MinimalPair], Any]
) -> dict[Any, PairAccuracy]:
    """Return the accuracy of each group of pairs, in the order in which the groups begin."""
    groups: dict[Any, list[PairScore]] = {}
    for score in scores:
        groups.setdefault(key(score.pair), []).append(score)
    return {name: measure_accuracy(members) for name, members in groups.items()}
