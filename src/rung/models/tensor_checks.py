"""Check a loaded model's tensors: finite weights, and tables of counts that fit together."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rung.errors import RunError

# The largest indexed text that is read in full: 200 MB, a fraction of a second.
MAX_CHECKED_TOKENS = 2**24


def check_tensors(model: PreTrainedModel, where: str) -> None:
    """Raise `RunError` for weights that are not finite, or tables that name a missing token or row.

    The first make figures without a meaning, the second crash.
    """
    check = {
        "rung-bigram": _find_bad_pair,
        "rung-ngram": _find_bad_ngram,
        "rung-infinigram": _find_bad_suffix,
    }
    if why := check.get(model.config.model_type, _find_bad_weight)(model):
        raise RunError(f"{where}: its {why}; copy them again, or train it again")


def _find_bad_weight(model: PreTrainedModel) -> str | None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            for bound in tensor.aminmax():  # needs no memory; both are NaN where one number is
                if not bound.isfinite():
                    return f"weights are damaged: in {name} there is {bound.item()}"
    return None


def _find_bad_pair(model: PreTrainedModel) -> str | None:
    first, tokens, counts = (
        model.get_buffer("first"),
        model.get_buffer("tokens"),
        model.get_parameter("counts"),
    )
    if not _rises(first, len(tokens)):
        return "pairs are damaged: what follows a token is out of order"
    if not _is_within(tokens, model.config.vocab_size):
        return f"pairs are damaged: a token is not among the {model.config.vocab_size:,}"
    before = torch.arange(len(first) - 1).repeat_interleave(first.diff())
    contexts = model.get_parameter("contexts").double()
    total = torch.zeros_like(contexts).index_add_(0, before, counts.double())
    if not bool((counts >= 0).all()) or not torch.allclose(
        total, contexts, rtol=1e-3
    ):  # float32 rounds beyond 2^24
        return "pairs are damaged: their counts do not add up"
    return None


def _find_bad_ngram(model: PreTrainedModel) -> str | None:
    sizes = getattr(model.config, "num_ngrams", None) or []
    for order, size in enumerate(sizes, start=1):
        why = None
        if model.get_parameter(f"log10_probability_{order}").isnan().any():
            why = "a probability is no number"
        if order < len(sizes) and model.get_parameter(f"log10_backoff_{order}").isnan().any():
            why = "a back-off weight is no number"
        if order > 1 and not _is_within(
            model.get_buffer(f"tokens_{order}"), model.config.vocab_size
        ):
            why = f"a token is not among the {model.config.vocab_size:,}"
        if order > 1 and not _rises(model.get_buffer(f"first_{order - 1}"), size):
            why = "what follows a history is out of order"
        if why:
            return f"{order}-grams are damaged: {why}"
    return None


def _find_bad_suffix(model: PreTrainedModel) -> str | None:
    """Check an indexed text.

    Of a large one only the small tables: the others stay on disk until they are needed.
    """
    text, unigrams = dict(model.named_buffers()), model.get_parameter("unigrams").double()
    tokens, suffixes, changes = (text[f"text.{name}"] for name in ("tokens", "suffixes", "changes"))
    first = text["text.first"]
    if not bool(((unigrams >= 0) & (unigrams <= 1)).all()) or abs(unigrams.sum().item() - 1) > 0.01:
        return "text is damaged: the shares of its tokens are no probabilities"
    discounts = model.config.discounts or []
    if not all(isinstance(one, int | float) and 0 <= one <= 1 for one in discounts):
        return (
            f"text is damaged: its discounts are {discounts!r:.60}, and must be numbers from 0 to 1"
        )
    if not _rises(first, len(suffixes)) or not _rises(
        text["text.first_change"], max(0, len(suffixes) - 1)
    ):
        return "text is damaged: its index is out of order"
    if len(tokens) > MAX_CHECKED_TOKENS:
        return None
    if not _is_within(tokens[:-1], model.config.vocab_size):
        return f"text is damaged: a token is not among the {model.config.vocab_size:,}"
    begins = torch.arange(len(first) - 1).repeat_interleave(first.diff())
    is_sorted = _is_within(suffixes, len(tokens) - 1) and torch.equal(
        tokens[suffixes].long(), begins
    )
    if not is_sorted or not _is_within(changes, len(suffixes)):
        return "text is damaged: its index points elsewhere"
    return None


def _is_within(numbers: Tensor, size: int) -> bool:
    return not len(numbers) or 0 <= int(numbers.min()) <= int(numbers.max()) < size


def _rises(numbers: Tensor, end: int) -> bool:
    """Whether the numbers go from 0 to `end` and never fall."""
    return (
        int(numbers[0]) == 0
        and int(numbers[-1]) == end
        and not bool((numbers[1:] < numbers[:-1]).any())
    )
