"""The variants of `rung eval`: what is scored beside the plain score, and what it is fitted on."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from rung.data.corpus import Corpus
from rung.data.tokenizer import fingerprint_tokenizer
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.cache import score_with_cache
from rung.evaluation.dynamic import score_dynamically
from rung.evaluation.mixture import score_mixture
from rung.evaluation.variants import Variant
from rung.models import find_rung, load
from rung.models.base import CausalModel
from rung.models.foreign import ForeignForCausalLM
from rung.progress import OnProgress

if TYPE_CHECKING:
    from datasets import Dataset

Scorer = Callable[[Sequence[str], OnProgress], Variant]


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """The variants that are asked for; each entry of `mix` is RUNG=RUN.

    With `per_document` the cost of each document is asked for too. With `prove`
    the text is coded and decoded under the run, and under each variant.
    """

    mix: tuple[str, ...] = ()
    cache: bool = False
    dynamic: bool = False
    per_document: bool = False
    prove: bool = False

    def __post_init__(self) -> None:
        if self.prove and self.dynamic:
            raise RecipeError(
                "--prove codes under weights that stay as they are, and --dynamic changes them: "
                "leave one out"
            )

    def __bool__(self) -> bool:
        """Whether any variant is asked for."""
        return bool(self.mix or self.cache or self.dynamic)


NO_VARIANTS = VariantOptions()


@dataclass(frozen=True)
class ScoredRun:
    """The run that is scored: its path, its rung, its model and its tokenizer."""

    run: str
    name: str
    model: CausalModel
    tokenizer: PreTrainedTokenizerBase


def prepare_variants(
    variants: VariantOptions, scored: ScoredRun, fitting: Corpus
) -> dict[str, Scorer]:
    """Make a function for each variant that scores texts.

    Each is fitted on the validation split of `fitting`. Raises `RungError` for what this run cannot
    do.
    """
    model, tokenizer = scored.model, scored.tokenizer
    validation, train = fitting.validation["text"], fitting.train["text"]
    if variants.dynamic:
        check_is_trainable(scored.run, scored.name, model)
    if variants.cache or variants.dynamic:
        check_has_states(scored.run, scored.name, model)
    scorers: dict[str, Scorer] = {}
    if variants.mix:
        models = {scored.run: model} | dict(load_partner(entry, scored) for entry in variants.mix)
        scorers["mix"] = lambda texts, on_progress: score_mixture(
            models, tokenizer, texts, validation, on_progress
        )
    if variants.cache:
        scorers["cache"] = lambda texts, on_progress: score_with_cache(
            model, tokenizer, texts, validation, on_progress
        )
    if variants.dynamic:
        scorers["dynamic"] = lambda texts, on_progress: score_dynamically(
            model, tokenizer, texts, validation, train, on_progress
        )
    return scorers


def check_has_states(run: str, name: str, model: CausalModel) -> None:
    """Raise `RunError` for a model that counts, or that hides the states which its head reads."""
    if hasattr(model, "fit"):
        raise RunError(
            f"{run}: {name} counts, so it has no hidden states for --cache to compare and no "
            "gradient for --dynamic to follow: name a run that was trained by gradients"
        )
    if model.get_output_embeddings() is None:
        raise RunError(
            f"{run}: --cache compares the states that the head reads, and a {name!r} model changes "
            "what its head says: leave --cache out"
        )


def check_is_trainable(run: str, name: str, model: CausalModel) -> None:
    """Raise `RunError` for a model in other code than rung's."""
    if isinstance(model, ForeignForCausalLM):
        raise RunError(
            f"{run}: --dynamic trains the model as it reads, and rung trains its own models only: "
            f"name a run, or leave --dynamic out for a {name!r} model"
        )


def choose_fitting_text(text: Corpus, split: str, read_own: Callable[[], Corpus] | None) -> Corpus:
    """Choose the corpus whose validation split the variants are fitted on.

    It is the one that is scored, or where that has none of its own the run's (`read_own`, None
    where the run knows none). Raises `CorpusError` where the only validation text is the text to be
    scored.
    """
    scored = text.split(split)
    if not _is_same(text.validation, scored):
        return text
    own = read_own() if read_own else None
    if own is None or _is_same(own.validation, scored):
        raise CorpusError(
            f"{text.name}: the text to be scored is the only validation text there is, and what is "
            f"fitted on it would "
            "flatter the score: choose another --split, or name a folder with valid/ and test/ in "
            "it"
        )
    return own


def _is_same(one: "Dataset", other: "Dataset") -> bool:
    return len(one) == len(other) and all(
        a == b for a, b in zip(one["text"], other["text"], strict=True)
    )


def load_partner(entry: str, scored: ScoredRun) -> tuple[str, CausalModel]:
    """Load the other run of RUNG=RUN.

    It must be of that rung and have the same tokenizer.
    """
    name, _, run = entry.partition("=")
    if not (name and run):
        raise RecipeError(
            f"--mix is {entry!r}: write it as RUNG=RUN, as in --mix ngram=runs/python-docs/ngram"
        )
    rung = find_rung(name)
    model, tokenizer = load(run)
    if not isinstance(model, rung.model_class):
        raise RunError(f"--mix {entry}: {run} is a {model.config.model_type!r} model and no {name}")
    if fingerprint_tokenizer(tokenizer) != fingerprint_tokenizer(scored.tokenizer):
        raise RunError(
            f"--mix {entry}: {run} has another tokenizer than {scored.run}, and only probabilities "
            f"of the same tokens "
            f"can be added: train it with `rung train {name} CORPUS --tokenizer "
            f"{shlex.quote(scored.run)}`"
        )
    return run, model.to(scored.model.device)
