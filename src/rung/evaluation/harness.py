"""Standard benchmarks by lm-evaluation-harness, with its own metrics.

This is not the ruler. The harness does not score the end of a document, does not charge for the
spelling of unknown words, and reads a long document in pieces that share one token of context.
"""

import contextlib
import copy
import difflib
import functools
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import weighted_mean, weighted_perplexity
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.likelihood import LOGITS_AT_ONCE
from rung.evaluation.metrics import perplexity
from rung.models.base import CausalModel, check_finite
from rung.models.foreign import ForeignForCausalLM

# The harness's request; the context's tokens, and the continuation's, which are scored.
TokenRequest = tuple[Any, list[int], list[int]]

# The harness's own length for a model that names none; a model with a state has no limit.
STATEFUL_LENGTH = 2048
MAX_BATCH_SIZE = 64
BOOTSTRAP_RESAMPLES = 1000  # for the standard errors of metrics that are no mean
FEWSHOT_SEED = 1234  # the harness's own


def run_tasks(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[str],
    limit: int | None = None,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Run tasks on at most `limit` documents each; return their metrics, and the texts they read.

    Raises `RecipeError` for a task that does not exist or may not be run, `CorpusError` where its
    text cannot be loaded, `RunError` where the model's context is too short for it.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The bootstrap is too short to be worth starting processes for.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(sys.stderr):  # the harness prints its progress
        found = load_tasks(tasks)
        for task in found["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
            task.aggregation = functools.partial(_let_be_infinite, task.aggregation())
        judged = HarnessLM(model, tokenizer)
        try:
            results = evaluate(
                judged, found, limit=limit, log_samples=False, bootstrap_iters=BOOTSTRAP_RESAMPLES
            )
        except ValueError as error:  # the task runs code or shows images
            raise RecipeError(f"--tasks: {error}") from error
        except OverflowError as error:
            raise RunError(
                f"--tasks: a figure of the harness is beyond the range of a float ({error})"
            ) from error
    texts = {
        name: [
            text
            for document in itertools.islice(task.eval_docs, limit)
            for text in _find_texts(document)
        ]
        for name, task in found["tasks"].items()
    }
    samples = results["n-samples"]
    return {
        name: _tidy(figures, samples.get(name, {})) for name, figures in results["results"].items()
    }, texts


def _find_texts(part: Any) -> Iterator[str]:
    """Yield all texts in a document of nested mappings and lists."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping | list | tuple):
        for inner in part.values() if isinstance(part, Mapping) else part:
            yield from _find_texts(inner)


def load_tasks(tasks: Iterable[str]) -> dict[str, Any]:
    """Load tasks and groups by a YAML file, a folder of them, or the harness's name or pattern."""
    specs = [
        part
        for spec in tasks
        for part in ([spec] if Path(spec).exists() else spec.split(","))
        if part
    ]
    if not specs:
        raise RecipeError(
            "--tasks names no task: a name, a YAML file, or a folder of them is needed"
        )
    for spec in specs:
        if spec.endswith((".yaml", ".yml")) and not Path(spec).exists():
            raise RecipeError(
                f"no task at {spec}: a YAML file, a folder of them, or a name is needed"
            )
    folders = [spec for spec in specs if Path(spec).is_dir()]
    is_named = any(not Path(spec).exists() for spec in specs)
    # Listing the harness's own tasks takes seconds.
    manager = TaskManager(include_path=folders or None, include_defaults=is_named)
    names = [name for spec in specs for name in _find_names(manager, spec)]
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # each source of text raises its own
            why = " ".join(f"{type(error).__name__}: {error}".split())
            if Path(name).is_file():
                remedy = (
                    "A task is a YAML page, its text in files that it names under "
                    "dataset_kwargs: data_files"
                )
            else:
                remedy = (
                    "Most have their text from the Hub, which needs a network; a YAML file of "
                    "your own names its files under dataset_kwargs: data_files"
                )
            raise CorpusError(f"the task {name} could not be loaded ({why}). {remedy}") from error
        found = {key: {**part, **loaded.get(key, {})} for key, part in found.items()}
    return found


def _find_names(manager: TaskManager, spec: str) -> list[str]:
    """Return the names that the harness loads for a file, a folder, a name or a pattern."""
    path = Path(spec)
    if path.is_file():
        return [spec]
    if path.is_dir():
        homes = {name: manager.task_index[name].yaml_path for name in manager.all_subtasks}
        names = [
            name
            for name, home in homes.items()
            if home and home.resolve().is_relative_to(path.resolve())
        ]
        if not names:
            raise RecipeError(
                f"{spec} has no task: a folder of YAML files, each with the key 'task', is needed"
            )
        return names
    names = manager.match_tasks([spec])
    if not names:
        near = difflib.get_close_matches(spec, manager.all_tasks)
        known = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else "`lm_eval ls tasks` lists what there is."
        )
        raise RecipeError(
            f"no task is called {spec!r}: {known} A file or a folder of tasks may be named too"
        )
    return names


def _let_be_infinite(aggregations: dict[str, Any]) -> dict[str, Any]:
    """Return a task's aggregations, with an infinite perplexity where the harness's overflows."""
    return {
        metric: (lambda items: perplexity(-weighted_mean(items), 1))
        if made is weighted_perplexity
        else made
        for metric, made in aggregations.items()
    }


def _tidy(figures: dict[str, Any], samples: dict[str, int]) -> dict[str, Any]:
    """Return a task's metrics; the harness joins a metric's name and its filter by a comma."""
    metrics = []
    for key, value in figures.items():
        metric, comma, answers = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = figures.get(f"{metric}_stderr,{answers}")
            error = error if isinstance(error, float) else None
            metrics.append({"metric": metric, "filter": answers, "value": value, "stderr": error})
    return {"documents": samples.get("effective"), "metrics": metrics}


class HarnessLM(HFLM):
    """Wrap a rung as the harness's `LM`: answers take at most half of its context."""

    def __init__(self, model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> None:
        length = model.context_length or STATEFUL_LENGTH
        rows = LOGITS_AT_ONCE // (length * model.config.vocab_size)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.split_special_tokens = True  # names of special tokens in a text are text
        super().__init__(
            pretrained=model.inner if isinstance(model, ForeignForCausalLM) else model,
            backend="causal",
            tokenizer=tokenizer,
            max_length=length,
            batch_size=min(MAX_BATCH_SIZE, max(1, rows)),
        )

    @property
    def max_gen_toks(self) -> int:
        """Return the tokens of an answer where the task does not say."""
        return min(super().max_gen_toks, self.max_length // 2)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts; the harness adds the BOS token itself, so the tokenizer must not."""
        self.add_bos_token: bool | None = False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.add_bos_token = None

    def _model_call(self, *args: Any, **options: Any) -> torch.Tensor:
        logits = super()._model_call(*args, **options)
        check_finite(logits)
        return logits

    def _loglikelihood_tokens(
        self,
        requests: list[TokenRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise RunError(
                f"the model reads {self.max_length} tokens, and an answer in the task has "
                f"{longest}: train with a larger max_position_embeddings, or choose another task"
            )
        # A text in several pieces would show a bar for each piece.
        disable_tqdm = disable_tqdm or override_bs is not None
        return super()._loglikelihood_tokens(
            requests, disable_tqdm=disable_tqdm, override_bs=override_bs
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate answers of the task's length, or of half the context where that is shorter."""
        return super().generate_until(
            [self._shorten(request) for request in requests], disable_tqdm=disable_tqdm
        )

    def _shorten(self, request: Instance) -> Instance:
        context, options = request.args
        wanted = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
        shortened = copy.copy(request)
        shortened.arguments = (
            context,
            {**options, "max_gen_toks": min(wanted, self.max_length // 2)},
        )
        return shortened
