"""Novelty of a run: what it writes at several settings of sampling, beside text of people.

The run continues the first words of test documents, and the documents' own next words are what
people wrote. Both are compared with the run's training text.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung import runs
from rung.data.corpus import Corpus
from rung.data.tokenizer import encode_ordinary, lossy_features
from rung.device import choose_device
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.novelty import Novelty, find_crossing, measure_novelty
from rung.evaluation.overlap import SpanIndex, choose_unit
from rung.files import check_writable
from rung.generation.decoder import Decoder
from rung.generation.generate import generate_batch
from rung.generation.sampling import Sampling
from rung.models import load
from rung.models.load_options import AS_STORED, LoadOptions
from rung.progress import OnProgress, Progress, ignore_progress
from rung.workflows.evaluate import read_current_text
from rung.workflows.record import take_first_words

# Temperature and top-p: one is moved while the other changes nothing, then rung's own default.
DEFAULT_SETTINGS = (
    *((temperature, 1.0) for temperature in (0.4, 0.6, 0.8, 1.0, 1.2)),
    *((1.0, top_p) for top_p in (0.7, 0.8, 0.9, 0.95)),
    (0.8, 0.95),
)
RECORD_KEY = "novelty"


@dataclass(frozen=True, kw_only=True)
class NoveltyOptions:
    """The settings of sampling (temperature, top-p), and how many texts of how many tokens."""

    settings: tuple[tuple[float, float], ...] = DEFAULT_SETTINGS
    texts: int = 32
    tokens: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("texts", "tokens"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        if not self.settings:
            raise RecipeError("there is no setting of sampling: name one, as in --sampling 0.8,1")
        self.samplings()

    def samplings(self) -> list[Sampling]:
        """Return the settings as generation takes them. Raises `RecipeError` for a wrong one."""
        return [
            Sampling(
                max_new_tokens=self.tokens, temperature=temperature, top_p=top_p, seed=self.seed
            )
            for temperature, top_p in dict.fromkeys(self.settings)
        ]


@dataclass(frozen=True)
class Continued:
    """The opening words of documents, and what people wrote next."""

    prompts: list[str]
    human: list[str]


def measure_run_novelty(
    run: str,
    options: NoveltyOptions,
    on_progress: OnProgress = ignore_progress,
    load_options: LoadOptions = AS_STORED,
) -> dict[str, Any]:
    """Measure the novelty of what a run writes, and write it into the run's record.

    That of a checkpoint is not kept: the record is that of the run's last weights.
    Raises `RunError` for a model whose training text is not known, or of which nothing was held
    out, `CorpusError` where that text is not where it was.
    """
    record = runs.find_training_record(Path(run))
    if not record.get("recipe"):
        raise RunError(
            f"{run} was not trained by rung, so the text that it may copy is not known: name a run "
            "(`rung runs`)"
        )
    is_kept = (Path(run) / runs.RECORD).exists()  # of a checkpoint the record has no scores
    if is_kept:
        runs.check_unlocked(Path(run))
        check_writable(Path(run) / runs.RECORD)
    model, tokenizer = load(run, load_options)
    on_progress(Progress(stage="reading"))
    corpus = read_current_text(run, record)
    pairs = _choose_documents(run, corpus, tokenizer, options)
    unit = choose_unit(pairs.human)
    on_progress(Progress(stage="comparing", note="sorting the training text"))
    index = SpanIndex(corpus.sample_train(1), unit)
    human = measure_novelty(pairs.human, index)
    decoder, measured = Decoder(model.to(choose_device())), []
    samplings = options.samplings()
    for done, sampling in enumerate(samplings):
        note = f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
        on_progress(Progress(stage="writing", done=done, total=len(samplings), note=note))
        texts = _continue(decoder, tokenizer, pairs.prompts, sampling)
        measured.append((sampling, measure_novelty(texts, index)))
    facts = {
        "unit": unit,
        "corpus": corpus.name,
        "train_is_beginning": corpus.stream is not None,
        **{key: value for key, value in asdict(options).items() if key != "settings"},
        "human": human.as_dict(),
        **_compare(human, measured),
    }
    if is_kept:
        _keep(Path(run), facts)
    return {"run": run, "rung": record["rung"], **facts}


def _choose_documents(
    run: str, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, options: NoveltyOptions
) -> Continued:
    """Take documents from all over the test split, each as often as the number of texts needs."""
    halves = ((take_first_words(text), text) for text in corpus.test["text"])
    pairs = [(prompt, text[len(prompt) :]) for prompt, text in halves]
    pairs = [(prompt, rest) for prompt, rest in pairs if rest.strip()]
    if not pairs:
        raise CorpusError(
            f"{run} has no test text that could be continued: nothing was held out of "
            f"{corpus.name}, or its documents are of a few words"
        )
    step = max(1, len(pairs) // options.texts)
    chosen = pairs[::step][: options.texts]
    prompts = [chosen[number % len(chosen)][0] for number in range(options.texts)]
    human = [_cut_tokens(rest, tokenizer, options.tokens) for _, rest in chosen]
    return Continued(prompts, human)


def _cut_tokens(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """Cut a text after so many tokens, and then after a whole word."""
    offsets = encode_ordinary(tokenizer, [text])[0].offsets
    if len(offsets) <= tokens:
        return text
    return _drop_cut_word(text[: offsets[tokens][0]])


def _drop_cut_word(text: str) -> str:
    """Leave out the last word of a text that ends where its tokens were used up."""
    return re.sub(r"\S+$", "", text)


def _continue(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, prompts: list[str], sampling: Sampling
) -> list[str]:
    """Continue the prompts. Only whole words are kept of what was written."""
    keeps_space = "white space" not in lossy_features(tokenizer)
    texts = []
    for made in generate_batch(decoder, tokenizer, prompts, sampling):
        text = made.text
        if keeps_space:  # what goes on with the prompt's last word is no word
            text = re.sub(r"^\S+", "", text)
        texts.append(_drop_cut_word(text) if made.tokens >= sampling.max_new_tokens else text)
    return texts


def _compare(human: Novelty, measured: Sequence[tuple[Sampling, Novelty]]) -> dict[str, Any]:
    """Compare each setting with people's text, and find where it is that of people's text.

    `crossings` has the temperature, and the top-p, at which the share of new n-grams is that of
    people's text while the other is 1; None where it is at no setting that was tried.
    """
    distances = [novelty.distance(human) for _, novelty in measured]
    rows = [
        {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "distance": distance,
            "verdict": novelty.compare(human),
            **novelty.as_dict(),
        }
        for (sampling, novelty), distance in zip(measured, distances, strict=True)
    ]
    crossings = {
        name: _find_crossing(human, [(s, n) for s, n in measured if getattr(s, other) == 1], name)
        for name, other in (("temperature", "top_p"), ("top_p", "temperature"))
    }
    nearest = distances.index(min(distances))
    return {"settings": rows, "nearest": nearest, "crossings": crossings}


def _find_crossing(
    human: Novelty, measured: Sequence[tuple[Sampling, Novelty]], name: str
) -> float | None:
    points = [(getattr(s, name), n.new_share) for s, n in measured if n.new_share is not None]
    if human.new_share is None or not points:
        return None
    at, shares = zip(*points, strict=True)
    return find_crossing(at, shares, human.new_share)


def _keep(folder: Path, facts: dict[str, Any]) -> None:
    """Write the figures into the run's record, where the report reads them."""
    with runs.lock_folder(folder):
        runs.write_record(folder, runs.read_record(folder) | {RECORD_KEY: facts})
