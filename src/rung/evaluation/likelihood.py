"""The negative log-likelihood of every token of a document, in nats.

A model with a limited context reads a long document through a sliding window, each token scored
once, with at least `window - stride` tokens before it. A model with a state carries the state
through the document.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from rung.evaluation.documents import NO_BOS
from rung.evaluation.products import fast_products
from rung.models.base import CausalModel, CountingModel, check_finite

LOGITS_AT_ONCE = 2**24  # positions times vocabulary: 64 MiB in float32
STATEFUL_TOKENS = 1024  # read at a time by a model that carries a state


class ForwardFunction(Protocol):
    """From a model, rows of token ids and a state to values (B, T, ...) of each prediction, and the
    next state.

    With `firsts` only the predictions of a row from that number on are wanted.
    """

    def __call__(
        self,
        model: CausalModel,
        rows: list[list[int]],
        state: Any,
        *,
        firsts: Sequence[int] | None = None,
    ) -> tuple[torch.Tensor, Any]: ...


@torch.no_grad()
def compute_nll(model: CausalModel, documents: list[list[int]]) -> list[torch.Tensor]:
    """Compute the nats of every token but the first of each document, in float32.

    Raises `RunError` where a model that learned by gradients returns a value that is no number.
    """
    if isinstance(model, CountingModel) and model.is_normalized:
        return _count_nll(model, documents)
    costs = [torch.empty(len(ids) - 1) for ids in documents]
    forward_documents(model, documents, costs, forward_nll)
    return costs


def needs_renormalization(model: CausalModel) -> bool:
    """Return whether the model's scores do not sum to 1, and are divided by their sum here."""
    return isinstance(model, CountingModel) and not model.is_normalized


def forward_documents(
    model: CausalModel,
    documents: list[list[int]],
    values: list[torch.Tensor],
    forward: ForwardFunction,
) -> None:
    """Run the model over all documents in batches, and fill `values`.

    `values` has for each document a tensor (T - 1, ...) that takes what `forward` returns for each
    predicted token. Raises `RunError` where a model that learned by gradients returns a value that
    is no number; a model that counts may give a token probability 0.
    """
    documents, values = _charge_first_tokens(model, documents, values)
    fill = _fill_carrying_state if model.context_length is None else _fill_by_windows
    order = sorted(range(len(documents)), key=lambda d: len(documents[d]))
    with fast_products(model.device):
        fill(model, [documents[d] for d in order], [values[d] for d in order], forward)
    if not hasattr(model, "fit"):  # it learned by gradients
        for value in values:
            check_finite(value)


def _charge_first_tokens(
    model: CausalModel, documents: list[list[int]], values: list[torch.Tensor]
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Charge the first token of documents without BOS log V nats; return what is left to fill."""
    without = [ids[:1] == [NO_BOS] for ids in documents]
    for value in itertools.compress(values, without):
        value[:1] = 0.0  # states, if there are any beside the cost
        value[:1].flatten()[:1] = math.log(model.config.vocab_size)
    kept = [ids[1:] if lacks else ids for ids, lacks in zip(documents, without, strict=True)]
    left = [value[1:] if lacks else value for value, lacks in zip(values, without, strict=True)]
    return kept, left


def _count_nll(model: CountingModel, documents: list[list[int]]) -> list[torch.Tensor]:
    """Score all documents as one row, which a counting model reads without a forward pass."""
    sizes = [len(ids) for ids in documents]
    row = torch.tensor(list(itertools.chain.from_iterable(documents)), device=model.device)
    log10, _ = model.score_tokens(row)
    return [costs[1:] for costs in (-math.log(10) * log10.cpu()).split(sizes)]


def _fill_carrying_state(
    model: CausalModel,
    documents: list[list[int]],
    values: list[torch.Tensor],
    forward: ForwardFunction,
) -> None:
    """Read documents side by side, and carry the state from one chunk of them to the next."""
    length = max(
        1, min(STATEFUL_TOKENS, len(documents[-1]), LOGITS_AT_ONCE // model.config.vocab_size)
    )
    rows = max(1, LOGITS_AT_ONCE // (length * model.config.vocab_size))
    for at in range(0, len(documents), rows):
        state = None
        for start in range(0, len(documents[min(at + rows, len(documents)) - 1]) - 1, length):
            pieces = [ids[start : start + length + 1] for ids in documents[at : at + rows]]
            found, state = forward(model, pieces, state)
            for value, row, piece in zip(values[at : at + rows], found, pieces, strict=True):
                value[start : start + length] = row[: max(0, len(piece) - 1)]


def _fill_by_windows(
    model: CausalModel,
    documents: list[list[int]],
    values: list[torch.Tensor],
    forward: ForwardFunction,
) -> None:
    """Read the windows of all documents, those of like length in one batch."""
    window = model.context_length or 0
    jobs = [
        (document, *job)
        for document, ids in enumerate(documents)
        for job in sliding_windows(len(ids) - 1, window)
    ]
    jobs.sort(key=lambda job: job[2] - job[1])
    rows = max(
        1, LOGITS_AT_ONCE // (max(1, min(window, len(documents[-1]))) * model.config.vocab_size)
    )
    for at in range(0, len(jobs), rows):
        batch = jobs[at : at + rows]
        inputs = [documents[d][first : end + 1] for d, first, end, _ in batch]
        firsts = [done - first for _, first, _, done in batch]
        found, _ = forward(model, inputs, None, firsts=firsts)
        for (document, first, end, done), row in zip(batch, found, strict=True):
            values[document][done:end] = row[done - first : end - first]


def sliding_windows(predictions: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first input, end, first new prediction) of each window over a document.

    The first window is scored whole, every other one in its last stride.
    """
    done = 0
    while done < predictions:
        end = min(predictions, window if done == 0 else done + choose_stride(window))
        yield max(0, end - window), end, done
        done = end


def choose_stride(window: int) -> int:
    """Return half the window, so that every token has at least half a window before it."""
    return max(1, window // 2)


def forward_nll(
    model: CausalModel,
    rows: list[list[int]],
    state: Any,
    *,
    firsts: Sequence[int] | None = None,
) -> tuple[torch.Tensor, Any]:
    """Return the nats (B, T) of each row's tokens but its first, and the model's next state."""
    return reduce_logits(model, rows, state, _cross_entropy, firsts=firsts)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def reduce_logits(
    model: CausalModel,
    rows: list[list[int]],
    state: Any,
    reduce: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    features: int | None = None,
    *,
    firsts: Sequence[int] | None = None,
) -> tuple[torch.Tensor, Any]:
    """Return what `reduce` makes of each prediction of a row (B, T), and the model's next state.

    `reduce` takes logits (N, V) in float32 and the tokens that follow (N), and returns (N), or
    (N, `features`). Rows are padded on the right, which no earlier token sees. The head reads some
    positions at a time, so that the logits of all of them never stand in memory. It reads none of
    padding, nor those before `firsts`, whose values are 0: in a small model it is most of the work.
    """
    width = max(2, max(map(len, rows)))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    wanted = _number_wanted(rows, firsts or [0] * len(rows), width - 1).to(model.device)
    head, states = model.get_output_embeddings(), []
    kind = model.device.type

    def keep(_: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        # A model in training reads under an autocast of its own, and so must its head.
        is_cast, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        states.append((inputs[0].flatten(0, 1), torch.autocast(kind, dtype, enabled=is_cast)))
        return inputs[0][:, :0]

    with head.register_forward_pre_hook(keep) if head is not None else nullcontext():
        output = model(ids[:, :-1], past_key_values=state, use_cache=model.context_length is None)
    targets = ids[:, 1:].flatten()
    # All at once: small tensors allocated between large ones would keep the memory of these.
    sizes = (len(targets),) if features is None else (len(targets), features)
    values = torch.zeros(sizes, dtype=torch.float32)
    at_once = max(1, LOGITS_AT_ONCE // 2 // model.config.vocab_size)  # the softmax needs as many
    for part in wanted.split(at_once):
        if states:
            hidden, autocast = states[0]
            with autocast:
                logits = head(hidden[part])
        else:
            logits = output.logits.flatten(0, 1)[part]
        values[part.cpu()] = reduce(logits.float(), targets[part]).cpu()
    return values.unflatten(0, (len(rows), width - 1)), output.past_key_values


def _number_wanted(rows: list[list[int]], firsts: Sequence[int], width: int) -> torch.Tensor:
    """Return the numbers of the predictions that are wanted, among `width` of each row."""
    return torch.cat(
        [
            torch.arange(first, len(row) - 1) + number * width
            for number, (row, first) in enumerate(zip(rows, firsts, strict=True))
            if first < len(row) - 1
        ]
        or [torch.arange(0)]
    )
