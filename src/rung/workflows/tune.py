"""Tune a run into a chat model: train on what the assistant says, and score what that changed."""

import shlex
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from rung import distributed, runs
from rung.chat.answers import (
    answer_questions,
    count_answer_bytes,
    sample_evenly,
    score_assistant_tokens,
)
from rung.chat.conversations import DEFAULT_CONVERSATIONS, Conversations, load_conversations
from rung.chat.dpo import (
    DPOSettings,
    filter_by_length,
    preference_accuracy,
    read_preferences,
    split_preferences,
    train_dpo,
)
from rung.chat.packing import ConversationDataset, sample_replay
from rung.chat.template import (
    CHATML_FORMAT,
    LLAMA3_FORMAT,
    encode_conversations,
    set_up_chat_format,
)
from rung.device import avoid_busy_cores, choose_device
from rung.errors import CorpusError, RecipeError, RunError
from rung.ladder import TRANSFORMER_RUNGS, is_counting
from rung.models import find_rung, find_rung_name
from rung.models.base import CausalModel
from rung.models.loading import load_rung
from rung.progress import OnProgress, Progress, ignore_progress
from rung.recipe import Recipe, check_positive, check_seed
from rung.training.argument_checks import check_arguments
from rung.training.arguments import make_training_arguments
from rung.training.callbacks import NO_CALLBACKS, TrainingCallbacks
from rung.training.checkpoints import find_checkpoints
from rung.training.clock import now
from rung.training.settings import TrainSettings, check_duration
from rung.training.train import TrainingResult, train
from rung.workflows.base import describe_base
from rung.workflows.chat_scores import ModelWithData, score_base, score_test, score_tuned
from rung.workflows.evaluate import read_current_text
from rung.workflows.fit import report_training
from rung.workflows.prepare import DEFAULT_MINUTES
from rung.workflows.record import (
    describe_environment,
    describe_tokenizer,
    score_run,
    warn_if_unchanged,
)
from rung.workflows.run_folder import FittedModel, check_unfinished, close_run, open_run
from rung.workflows.training_text import describe_paths, relocate_paths

# The weights have learned already: they are trained at half the learning rate of new ones.
GENTLER = 0.5
# Tokens of the base's own text that are replayed, as a share of the conversations' tokens.
REPLAY_SHARE = 0.25
# Conversations that are scored at every evaluation in training.
VALIDATION_CONVERSATIONS = 64

Loaded = tuple[CausalModel, PreTrainedTokenizerBase]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which run is tuned, on which conversations, and for how long."""

    base: str
    data: str = DEFAULT_CONVERSATIONS
    steps: int | None = None
    minutes: float | None = None
    train: dict[str, Any] = field(default_factory=dict)  # fields of TrainingArguments
    seed: int = 0

    preference: str = ""  # a file of pairs of answers, in the place of conversations

    def __post_init__(self) -> None:
        if self.preference and (
            self.minutes or self.steps or self.train or self.data != DEFAULT_CONVERSATIONS
        ):
            raise RecipeError(
                f"--preference {self.preference} goes once through its pairs, at a rate of its "
                f"own: leave out DATA, "
                "--minutes, --steps and --set"
            )
        check_positive("minutes", self.minutes, float)
        check_positive("steps", self.steps, int)
        check_seed(self.seed)
        _check_settings(self.train)
        check_arguments(self.train)
        check_duration(self.steps, self.minutes, self.train)


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise `RecipeError` for a setting of a recipe, such as `lora`, that tuning does not have."""
    others = {each.name for each in fields(Recipe)} - {each.name for each in fields(Tuning)}
    for key in others.intersection(settings):
        raise RecipeError(
            f"{key} is {settings[key]!r}, which is a setting of `rung train` alone: leave it out; "
            "tuning trains all weights of the run as it is"
        )


@dataclass(frozen=True, kw_only=True)
class PreparedTuning:
    """What the main process prepares before training.

    Pickled for other processes, it has no data of its own.
    """

    record: dict[str, Any]
    rows: ConversationDataset
    data: ModelWithData | None
    began: float  # when the minutes began, by the main process's clock

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "data": None}


def tune(
    plan: Tuning,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
) -> bool:
    """Make the chat model of `plan` in `folder`, from its last checkpoint if there is one.

    The minutes count from `began`, by `training.clock.now`, else from now, and include the scores
    before and after. Returns whether the run was finished: False when it was interrupted, and the
    work so far was saved. Under `torchrun` the processes train together; the main one does the
    rest. Raises `RungError`; a start that fails leaves nothing in `folder`.
    """
    if plan.preference and distributed.world_size() > 1:
        raise RecipeError(
            f"--preference learns in one process, not in {distributed.world_size()}: leave out "
            "torchrun"
        )
    with runs.lock_folder(folder, together=True), runs.remove_failed_start(folder):
        base = read_base(plan.base)
        on_progress(Progress(stage="reading"))
        model, tokenizer = distributed.raise_together(load_rung)(plan.base, "`rung tune`")
        model = model.float().to(choose_device())
        if plan.preference:
            return _tune_preferences(plan, base, (model, tokenizer), folder, on_progress)
        began = now() if began is None else began
        prepared = _prepare(plan, base, (model, tokenizer), folder, on_progress, began)
        same = {"base": plan.base, "tune": plan.data}
        record = distributed.on_main(open_run)(folder, prepared.record, same)
        fitted = _fit(plan, prepared, (model, tokenizer), folder, on_progress)
        return close_run(folder, record, fitted, partial(_score, prepared, record, on_progress))


def _score(
    prepared: PreparedTuning,
    record: dict[str, Any],
    on_progress: OnProgress,
    model: CausalModel,
    trained: TrainingResult | None,
) -> dict[str, Any]:
    assert prepared.data is not None
    return score_tuned(prepared.data, record, on_progress)


@distributed.on_main
def read_base(run: str) -> dict[str, Any]:
    """Read the record of the run that is tuned; it is empty for a plain model folder.

    Raises `RunError` for a run that counts, and for one that is not finished.
    """
    record = runs.find_record(Path(run))
    if record and is_counting(record["rung"]):
        raise RunError(
            f"{run} is a {record['rung']}, which counts: only what is trained by gradients can be "
            f"tuned"
        )
    if record and not runs.is_finished(Path(run)):
        raise RunError(f"{run} {runs.explain_unfinished(Path(run))}")
    return record


def read_begun_tuning(folder: Path) -> Tuning:
    """Read the plan of the tuning to resume in `folder`.

    Raises `RunError` when there is nothing to resume.
    """
    record = runs.read_record(folder)
    if "tune" not in record:
        raise RunError(
            f"{folder} is no tuned run: go on with `rung train --out {shlex.quote(str(folder))} "
            f"--resume`"
        )
    check_unfinished(folder)
    return Tuning(**relocate_paths(record["tune"]["plan"], record.get("places", {})))


@distributed.on_main
def _prepare(
    plan: Tuning,
    base: dict[str, Any],
    loaded: Loaded,
    folder: Path,
    on_progress: OnProgress,
    began: float,
) -> PreparedTuning:
    """Read the conversations, score the base, and encode what the model is trained on."""
    make_training_arguments(
        _make_settings(plan, loaded[0], began), folder, 1
    )  # refuses what the Trainer would
    data = ModelWithData(
        model=loaded[0],
        tokenizer=loaded[1],
        conversations=load_conversations(plan.data),
        corpus=read_current_text(plan.base, base) if "recipe" in base else None,
    )
    record = _describe(data.model, plan, base)
    record["tune"] |= _describe_conversations(data.conversations)
    scoring = now()
    begun = runs.read_record(folder) if find_checkpoints(folder) else {}
    before = begun.get("tune", {}).get("before") or score_base(data, on_progress)
    record["tune"]["before"] = before
    # Scoring takes as long again after training.
    began -= now() - scoring
    _add_chat_format(data.model, data.tokenizer, plan, record)
    record["tokenizer"] = describe_tokenizer(
        data.tokenizer, base.get("tokenizer", {}).get("kind", plan.base)
    )
    on_progress(Progress(stage="tokenizing"))
    rows = _encode(data, plan, record["rung"])
    record["tune"] |= {"rows": len(rows), "cut": rows.cut, "left_out": rows.left_out}
    return PreparedTuning(record=record, rows=rows, data=data, began=began)


def _fit(
    plan: Tuning, prepared: PreparedTuning, loaded: Loaded, folder: Path, on_progress: OnProgress
) -> FittedModel:
    """Train on the conversations. All processes call this, each with a model of its own."""
    model, tokenizer = loaded
    if not distributed.is_main():
        _add_chat_format(model, tokenizer, plan, prepared.record)
    avoid_busy_cores()
    callbacks = _make_callbacks(prepared.data, on_progress) if prepared.data else NO_CALLBACKS
    settings = _make_settings(plan, model, prepared.began)
    with warn_if_unchanged(model):
        trained = train(model, tokenizer, prepared.rows, folder, settings, callbacks)
    return FittedModel(model=model, tokenizer=tokenizer, trained=trained)


def _tune_preferences(
    plan: Tuning, base: dict[str, Any], loaded: Loaded, folder: Path, on_progress: OnProgress
) -> bool:
    """Teach a chat model which of two answers is better; there is nothing to resume."""
    model, tokenizer = loaded
    preferences = read_preferences(Path(plan.preference).expanduser())
    if not tokenizer.chat_template:
        raise RunError(
            f"{plan.base} answers nothing yet: first `rung tune {shlex.quote(plan.base)}`, "
            "then --preference on that run"
        )
    learned, held_out = split_preferences(
        filter_by_length(tokenizer, preferences, model.context_length)
    )
    corpus = read_current_text(plan.base, base) if "recipe" in base else None
    record = _describe(model, plan, base)
    before: dict[str, Any] = {"preferred": preference_accuracy(model, tokenizer, held_out)}
    if corpus:
        before |= score_test(model, tokenizer, corpus, on_progress)
    record["tune"] |= {
        "data": Path(plan.preference).name,
        "preferences": len(learned),
        "held_out": len(held_out),
        "before": before,
    }
    set_seed(plan.seed)
    with warn_if_unchanged(model):
        train_dpo(model, tokenizer, learned, DPOSettings(seed=plan.seed), on_progress)

    def score(model: CausalModel, trained: TrainingResult | None) -> dict[str, Any]:
        after: dict[str, Any] = {"preferred": preference_accuracy(model, tokenizer, held_out)}
        found = {"scores": {}} | (
            score_run(model, tokenizer, corpus, on_progress) if corpus else {}
        )
        if corpus:
            after["bits_per_byte"] = found["scores"]["test"]["bits_per_byte"]
        return found | {"tune": record["tune"] | {"after": after}}

    fitted = FittedModel(model=model, tokenizer=tokenizer, trained=None)
    return close_run(folder, record, fitted, score)


def _describe(model: CausalModel, plan: Tuning, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "rung": find_rung_name(type(model)),
        **{key: base[key] for key in ("recipe", "corpus", "tokenizer") if key in base},
        **describe_base(plan.base, model),
        "tune": {"plan": asdict(plan)},
        "places": describe_paths(base=plan.base, data=plan.data, preference=plan.preference),
        **describe_environment(plan.seed),
    }


def _describe_conversations(data: Conversations) -> dict[str, Any]:
    sizes = {"train": data.train, "validation": data.validation, **data.tests}
    return {
        "data": data.name,
        "fingerprint": data.fingerprint,
        "conversations": {name: len(found) for name, found in sizes.items()},
    }


def _add_chat_format(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, plan: Tuning, record: dict[str, Any]
) -> None:
    """Add the tokens of a conversation: on all processes the same new weights."""
    set_seed(plan.seed)
    set_up_chat_format(
        model, tokenizer, LLAMA3_FORMAT if record["rung"] == "llama3" else CHATML_FORMAT
    )


def _make_settings(plan: Tuning, model: CausalModel, began: float) -> TrainSettings:
    rate = find_rung(find_rung_name(type(model))).find_learning_rate(model.config.hidden_size)
    gentle = {"learning_rate": GENTLER * rate, "weight_decay": 0.0}
    has_end = plan.steps or "num_train_epochs" in plan.train
    return TrainSettings(
        steps=plan.steps,
        minutes=plan.minutes or (None if has_end else DEFAULT_MINUTES),
        arguments={**gentle, **plan.train},
        seed=plan.seed,
        began=began,
    )


def _encode(data: ModelWithData, plan: Tuning, rung: str) -> ConversationDataset:
    """Encode the conversations, and some of the base's own text, as rows.

    Raises `CorpusError` where no answer begins within the model's context.
    """
    model, tokenizer = data.model, data.tokenizer
    length = model.context_length or model.config.max_position_embeddings
    encoded = encode_conversations(tokenizer, data.conversations.train)
    if not any(any(e.assistant_mask[1 : length + 1]) for e in encoded):
        raise CorpusError(
            f"{plan.data}: no answer begins within the {length} tokens that the model looks at: "
            f"shorten what is asked"
        )
    if data.corpus:
        tokens = REPLAY_SHARE * sum(len(e.ids) for e in encoded)
        encoded += sample_replay(data.corpus, tokenizer, length, tokens)
    return ConversationDataset(
        encoded, length, tokenizer.pad_token_id, packed=rung in TRANSFORMER_RUNGS
    )


def _make_callbacks(data: ModelWithData, on_progress: OnProgress) -> TrainingCallbacks:
    """Make what training calls: it scores and shows held-out answers."""
    tokenizer = data.tokenizer
    validation = sample_evenly(data.conversations.validation, VALIDATION_CONVERSATIONS)
    encoded, size = encode_conversations(tokenizer, validation), count_answer_bytes(validation)

    def show_answer(model: CausalModel) -> str:
        answer = answer_questions(model, tokenizer, validation[:1])[0]
        return f"{answer.question}\n\n{answer.given}"

    return TrainingCallbacks(
        evaluate=lambda model: score_assistant_tokens(model, encoded, size)["bits_per_byte"],
        sample=show_answer,
        on_progress=report_training(on_progress, "tuning", "bits per byte of answers"),
    )
