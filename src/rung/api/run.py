"""A run, or any model that a folder or the Hub holds: `rung.load`, and what is asked of it."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rung import hub, runs
from rung.api.notebook import show_run
from rung.api.options import (
    CorpusName,
    check_options,
    name_corpus,
    name_pairs,
)
from rung.device import avoid_busy_cores
from rung.errors import RecipeError
from rung.evaluation.surprisal import TokenScore, score_text
from rung.generation.decoder import Decoder
from rung.generation.generate import Generation
from rung.generation.generate import generate as continue_text
from rung.generation.quantize import measure_quantization_cost, parse_weight_dtype
from rung.generation.sampling import Sampling
from rung.generation.speculative import make_draft
from rung.models import load as load_model
from rung.models.base import CausalModel
from rung.models.load_options import AS_STORED, LoadOptions
from rung.models.loading import locate_model
from rung.progress import OnProgress, for_run, ignore_progress
from rung.workflows.evaluate import ScoredText, evaluate_run, evaluate_tasks
from rung.workflows.pairs import evaluate_pairs
from rung.workflows.variants import VariantOptions

READING = ("documents", "column", "encoding")  # how other text is read


class Run:
    """A run: its record, its model, its scores. A notebook shows it as a table with its curve.

    It may also be a Hugging Face model folder or a Hub id, which has no record.
    """

    def __init__(self, folder: str | Path, options: LoadOptions = AS_STORED) -> None:
        self.name = str(folder)
        self.options = options
        self.folder = Path(folder).expanduser()

    @property
    def record(self) -> dict[str, Any]:
        """The contents of the folder's `rung.json`; empty where there is none."""
        return runs.find_record(self.folder)

    @property
    def scores(self) -> dict[str, Any]:
        """The figures on the run's own test text, from its record; empty where it has none.

        `bits_per_byte` has its 95% interval in `low` and `high`.
        """
        return (self.record.get("scores") or {}).get("test") or {}

    @property
    def model(self) -> CausalModel:
        """The model, loaded when it is first asked for. Raises `RunError` where it is damaged."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when it is first asked for."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[CausalModel, PreTrainedTokenizerBase]:
        return load_model(self.name, self.options)

    def metrics(self) -> Any:
        """The logged steps of training as a pandas DataFrame, or without pandas a dict of lists."""
        lines = runs.read_metrics(self.folder)
        names = dict.fromkeys(name for line in lines for name in line)
        columns = {name: [line.get(name) for line in lines] for name in names}
        if importlib.util.find_spec("pandas") is None:
            return columns
        import pandas

        return pandas.DataFrame(columns)

    def generate(
        self,
        prompt: str = "",
        *,
        draft: str = "",
        weights: str = "",
        on_text: Callable[[str], None] | None = None,
        **sampling: Any,
    ) -> Generation:
        """Continue a prompt; `generate` of this module says how."""
        check_options("generate", sampling, [field.name for field in fields(Sampling)])
        if "stop" in sampling:
            stop = sampling["stop"]
            sampling["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        chosen, rounded = Sampling(**sampling), parse_weight_dtype(weights)
        avoid_busy_cores()
        decoder = Decoder(self.model, rounded)
        guesses = make_draft(draft, self.tokenizer) if draft else None
        return continue_text(decoder, self.tokenizer, prompt, chosen, on_text, guesses)

    def measure_rounding(self, weights: str, prompt: str = "") -> float:
        """The bits per byte that rounded weights cost on the run's own passage, or on the prompt.

        `weights` is `bfloat16` or `int8`.
        """
        dtype = parse_weight_dtype(weights)
        if dtype is None:
            return 0.0
        passage = runs.read_passage(self.record)
        return measure_quantization_cost(self.model, self.tokenizer, passage or prompt, dtype)

    def score(self, text: str | None = None) -> dict[str, Any] | list[TokenScore]:
        """The figures on the run's test text, or the surprisal of each token of a text in bits."""
        return self.surprisal(text) if text is not None else self.scores or self.evaluate()

    def surprisal(self, text: str) -> list[TokenScore]:
        """Compute the bits of each token of a text, its end included."""
        return score_text(self.model, self.tokenizer, text)

    def pairs(
        self,
        source: str | Path,
        *,
        encoding: str = "",
        on_progress: OnProgress = ignore_progress,
    ) -> dict[str, Any]:
        """Score the run on the minimal pairs of a file or folder; `evaluate` says what is found."""
        told = for_run("eval", on_progress)
        return evaluate_pairs(self.name, str(source), encoding or None, told, self.options)

    def evaluate(
        self,
        corpus: CorpusName = None,
        split: str = "test",
        *,
        tasks: Sequence[str] = (),
        on_progress: OnProgress = ignore_progress,
        **options: Any,
    ) -> dict[str, Any]:
        """Score the run on held-out text; `evaluate` of this module says how."""
        known = ["mix", "cache", "dynamic", "prove", "per_document", "limit", "pairs"]
        check_options("evaluate", options, [*READING, *known])
        limit = options.pop("limit", None)
        named = name_corpus(corpus)
        if pairs := name_pairs(options.pop("pairs", None)):
            encoding = options.pop("encoding", "")
            if named or split != "test" or tasks or limit or any(options.values()):
                raise RecipeError(
                    "--pairs bring their own text: leave out CORPUS, --split, --documents, "
                    "--column, --mix, --cache, --dynamic, --prove, --per-document, --tasks, --limit"
                )
            return self.pairs(pairs, encoding=encoding or "", on_progress=on_progress)
        if tasks and (named or split != "test" or any(options.values())):
            raise RecipeError(
                "--tasks bring their own text: leave out CORPUS, --split, --documents, --mix, "
                "--cache, --dynamic, --prove, --per-document"
            )
        if tasks:
            return evaluate_tasks(self.name, list(tasks), limit or None, self.options)
        if limit:
            raise RecipeError(
                f"--limit is {limit}, but it is of --tasks: name a task, or leave it out"
            )
        reading = {key: options.pop(key) or "" for key in READING if key in options}
        switches = VariantOptions(**options | {"mix": tuple(options.get("mix") or ())})
        text = ScoredText(named, split, reading)
        told = for_run("eval", on_progress)
        return evaluate_run(self.name, text, told, switches, self.options)

    def __fspath__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        facts: dict[str, Any] = {}
        if (self.folder / runs.RECORD).exists():
            record = runs.read_record_or_failure(self.folder)
            corpus, bits = record.get("corpus") or {}, self.scores.get("bits_per_byte")
            facts = {"rung": record["rung"], "corpus": corpus.get("name")}
            facts |= {"bits_per_byte": bits and round(bits, 3), "failed": record.get("failed")}
        shown = [f"{name}={value!r}" for name, value in facts.items() if value is not None]
        return f"Run({', '.join([repr(self.name), *shown])})"

    def _repr_html_(self) -> str:
        return show_run(self.folder)


def load(
    run: str | Path | Run,
    *,
    window: int | None = None,
    dtype: str = "",
    trust_remote_code: bool = False,
) -> Run:
    """Open a run folder, a Hugging Face model folder or a Hub id; its model is loaded when needed.

    It may be any causal language model that transformers opens.

    >>> _ = rung.train("bigram", "my.txt", out="runs/pairs")
    >>> rung.load("runs/pairs").model.config.model_type
    'rung-bigram'

    `window` is the number of tokens to read at once in the place of the model's own, `dtype` the
    type of its weights in the place of the stored one: `float32`, `bfloat16` or `float16`. Code
    that comes with a model runs only with `trust_remote_code`. Raises `RunError` where there is no
    model.
    """
    options = LoadOptions(window=window, dtype=dtype, trust_remote_code=trust_remote_code)
    if isinstance(run, Run):
        return run if options in (run.options, AS_STORED) else Run(run.name, options)
    name = str(run)
    if not hub.is_hub_id(name):
        locate_model(name)
    return Run(name, options)


def evaluate(
    run: str | Path | Run,
    corpus: CorpusName = None,
    split: str = "test",
    *,
    tasks: Sequence[str] = (),
    on_progress: OnProgress = ignore_progress,
    **options: Any,
) -> dict[str, Any]:
    """Score a run on held-out text: bits per byte, word and token perplexity, each with its text.

    >>> found = rung.evaluate(rung.train("bigram", "my.txt"), split="validation")
    >>> found["low"] <= found["bits_per_byte"] <= found["high"]
    True

    Without `corpus` the run's own text is scored. Options are `documents`, `column` and `encoding`
    (how other text is read), and `mix` (entries RUNG=RUN), `cache` and `dynamic`, whose scores
    stand beside the plain one under their names; with `per_document=True` a list of that name has
    the cost of each document, and with `prove=True` the text is coded and decoded, and `proof` has
    its size beside the score's. `tasks` are names of lm-evaluation-harness, YAML files or folders,
    scored instead; `limit` is the number of documents of each. `pairs` is a file or folder of
    minimal pairs, scored instead: the result has the `accuracy` with its `low` and `high`, and a
    list of `phenomena` and of `paradigms`. Raises a child of `RungError` for a mistake of the user.
    """
    return load(run).evaluate(corpus, split, tasks=tasks, on_progress=on_progress, **options)


def generate(
    run: str | Path | Run,
    prompt: str = "",
    *,
    draft: str = "",
    weights: str = "",
    on_text: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Generation:
    """Continue a prompt. The result has the continuation as its `text`.

    >>> made = rung.generate(rung.train("bigram", "my.txt"), "The", max_new_tokens=5)
    >>> made.tokens
    5

    `sampling` has `max_new_tokens`, `temperature`, `top_k`, `top_p`, `num_beams`, `stop`, `seed`
    and `max_time`. `draft` guesses ahead: the folder of an `ngram` run, or `prompt`. `weights`
    rounds the weights to `bfloat16` or `int8`. `on_text` is called with each piece of text as it
    comes. Raises a child of `RungError` for a mistake of the user.
    """
    return load(run).generate(prompt, draft=draft, weights=weights, on_text=on_text, **sampling)
