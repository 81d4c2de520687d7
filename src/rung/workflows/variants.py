"""The switches of `rung eval`: what else is scored beside the plain score, and on what text it is
fitted.
"""

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
from rung.progress import OnProgress

if TYPE_CHECKING:
    from datasets import Dataset

Scorer = Callable[[Sequence[str], OnProgress], Variant]


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What is asked for beside the plain score; each entry of `mix` is RUNG=RUN."""

    mix: tuple[str, ...] = ()
    cache: bool = False
    dynamic: bool = False

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.mix or self.cache or self.dynamic)


PLAIN = Switches()


@dataclass(frozen=True)
class Judged:
    """The run that is scored: where it lies, its rung, its model and its tokenizer."""

    run: str
    name: str
    model: CausalModel
    tokenizer: PreTrainedTokenizerBase


def prepare_switches(switches: Switches, judged: Judged, fitting: Corpus) -> dict[str, Scorer]:
    """A function that scores texts for each switch, fitted on the validation split of `fitting`.

    Raises `RungError` for what cannot be done with this run.
    """
    model, tokenizer = judged.model, judged.tokenizer
    validation, train = fitting.validation["text"], fitting.train["text"]
    if (switches.cache or switches.dynamic) and hasattr(model, "fit"):
        raise RunError(
            f"{judged.run}: {judged.name} counts, so it has no hidden states for --cache to "
            f"compare and no gradient "
            "for --dynamic to follow: name a run that was trained by gradients"
        )
    scorers: dict[str, Scorer] = {}
    if switches.mix:
        models = {judged.run: model} | dict(_load_partner(entry, judged) for entry in switches.mix)
        scorers["mix"] = lambda texts, on_progress: score_mixture(
            models, tokenizer, texts, validation, on_progress
        )
    if switches.cache:
        scorers["cache"] = lambda texts, on_progress: score_with_cache(
            model, tokenizer, texts, validation, on_progress
        )
    if switches.dynamic:
        scorers["dynamic"] = lambda texts, on_progress: score_dynamically(
            model, tokenizer, texts, validation, train, on_progress
        )
    return scorers


def choose_fitting(text: Corpus, split: str, read_own: Callable[[], Corpus] | None) -> Corpus:
    """The corpus whose validation split the switches are fitted on: the one scored, or where that
    has none of its own the run's own (`read_own`, None where it knows none).

    Raises `CorpusError` where the only validation text is the text to be scored.
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


def _load_partner(entry: str, judged: Judged) -> tuple[str, CausalModel]:
    """The other run of RUNG=RUN and its model, checked to be of that rung and to read the same
    tokens.
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
    if fingerprint_tokenizer(tokenizer) != fingerprint_tokenizer(judged.tokenizer):
        raise RunError(
            f"--mix {entry}: {run} has another tokenizer than {judged.run}, and only probabilities "
            f"of the same tokens "
            f"can be added: train it with `rung train {name} CORPUS --tokenizer "
            f"{shlex.quote(judged.run)}`"
        )
    return run, model.to(judged.model.device)
