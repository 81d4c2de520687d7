"""Making a chat model of a run: conversations, training on what the assistant says, and what that
changed, honestly.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from rung import distributed, runs
from rung.chat.answers import (
    GradedAnswer,
    answer_questions,
    count_answer_bytes,
    encode_plain_conversations,
    sample_evenly,
    score_assistant_tokens,
    score_retrieval,
    summarize_answers,
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
    Conversation,
    encode_conversations,
    set_up_chat_format,
)
from rung.data.corpus import Corpus
from rung.device import choose_device, leave_busy_cores
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.score import score_documents
from rung.files import remove_leftovers
from rung.ladder import TRANSFORMER_RUNGS, is_counting
from rung.models import count_parameters, find_rung_name, load
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress, ignore_progress
from rung.recipe import check_positive, check_seed
from rung.training.argument_checks import check_arguments
from rung.training.arguments import make_training_arguments
from rung.training.callbacks import NO_CALLBACKS, TrainingCallbacks
from rung.training.checkpoints import find_checkpoints
from rung.training.clock import now
from rung.training.settings import TrainSettings, check_duration
from rung.training.train import Trained, train
from rung.workflows.base import describe_base
from rung.workflows.evaluate import read_own
from rung.workflows.record import (
    describe_surroundings,
    describe_tokenizer,
    describe_training,
    judge,
    warn_unmoved,
)
from rung.workflows.training_text import describe_places, find_again

DEFAULT_MINUTES = 5.0
ARGUMENTS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
}  # weights that have learned already
REPLAYED = 0.25  # as many tokens of the base's own text as conversations have, times this
WATCHED = 64  # conversations that training watches
ASKED = 100  # questions of each set that are answered in the end
SHOWN = 3  # answers of the best, and of the worst


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
        check_arguments(self.train)
        check_duration(self.steps, self.minutes, self.train)


@dataclass(frozen=True, kw_only=True)
class _Student:
    """The model that is tuned; what it is tuned on, and the text that it was judged by before, are
    with the main process alone: others get it without them, and with a model of their own.
    """

    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    data: Conversations
    corpus: Corpus | None


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """What the main process has found before training begins; others get it without the student."""

    student: _Student | None
    record: dict[str, Any]
    examples: ConversationDataset
    began: float  # when its minutes began to count, by the main process's clock

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "student": None}


def tune(
    plan: Tuning,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
) -> bool:
    """Make the chat model that `plan` describes in `folder`, from the last checkpoint there if
    there is one.

    Its minutes count from `began` by `train.clock.now`, else from now, and hold how it is judged
    before and after. Returns whether it was finished: False when it was interrupted, the work so
    far saved. Under `torchrun` the processes train together; the rest is done once, by the main
    one. Raises `RungError`; a start that fails leaves nothing in `folder`.
    """
    if plan.preference and distributed.world_size() > 1:
        raise RecipeError(
            f"--preference learns in one process, not in {distributed.world_size()}: leave out "
            "torchrun"
        )
    with runs.lock_folder(folder, together=True), runs.remove_failed_start(folder):
        return _tune(plan, folder, on_progress, now() if began is None else began)


def _tune(plan: Tuning, folder: Path, on_progress: OnProgress, began: float) -> bool:
    base = distributed.on_main(read_base)(plan.base)
    on_progress(Progress(stage="reading"))
    model, tokenizer = distributed.raise_together(load)(plan.base)
    model = model.float().to(choose_device())
    if plan.preference:
        return _prefer(plan, base, (model, tokenizer), folder, on_progress)
    begun = _begin(plan, base, (model, tokenizer), folder, on_progress, began)
    if not distributed.is_main():
        _teach(model, tokenizer, plan, begun.record)
    leave_busy_cores()
    callbacks = _make_callbacks(begun.student, on_progress) if begun.student else NO_CALLBACKS
    with warn_unmoved(model):
        trained = train(
            model, tokenizer, begun.examples, folder, _make_settings(plan, begun.began), callbacks
        )
    return _finish(begun, trained, folder, on_progress)


@distributed.on_main
def _finish(begun: _Begun, trained: Trained, folder: Path, on_progress: OnProgress) -> bool:
    """Save what was learned and judge it; what was interrupted is saved, no more."""
    student, record = begun.student, begun.record
    assert student is not None
    record |= {
        "parameters": count_parameters(student.model),
        "training": describe_training(trained),
    }
    runs.save_model(folder, student.model.eval(), student.tokenizer)
    if not trained.interrupted:
        _judge_after(student, record, on_progress)
    runs.write_record(folder, record)
    return not trained.interrupted


def read_base(run: str) -> dict[str, Any]:
    """The record of the run that is tuned; empty for a plain model folder.

    Raises `RunError` for one that counts, or is not finished.
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


def read_begun(folder: Path) -> Tuning:
    """The plan of the tuning that was begun in `folder`.

    Raises `RunError` when there is nothing to resume.
    """
    record = runs.read_record(folder)
    if "tune" not in record:
        raise RunError(
            f"{folder} is no tuned run: go on with `rung train --out {shlex.quote(str(folder))} "
            f"--resume`"
        )
    if runs.is_finished(folder):
        raise RunError(f"{folder} is finished: there is nothing to resume")
    return Tuning(**find_again(record["tune"]["plan"], record.get("places", {})))


def _prefer(
    plan: Tuning,
    base: dict[str, Any],
    made: tuple[CausalModel, PreTrainedTokenizerBase],
    folder: Path,
    on_progress: OnProgress,
) -> bool:
    """Teach a chat model which of two answers is the better one; there is nothing to resume."""
    model, tokenizer = made
    preferences = read_preferences(Path(plan.preference).expanduser())
    if not tokenizer.chat_template:
        raise RunError(
            f"{plan.base} answers nothing yet: first `rung tune {shlex.quote(plan.base)}`, "
            "then --preference on that run"
        )
    learned, held_out = split_preferences(
        filter_by_length(tokenizer, preferences, model.context_length)
    )
    runs.make_folder(folder)
    corpus = read_own(plan.base, base) if "recipe" in base else None
    record = _describe(model, plan, base)
    record["tune"] |= {
        "data": Path(plan.preference).name,
        "preferences": len(learned),
        "held_out": len(held_out),
    }
    sides: dict[str, Any] = {
        "before": {"preferred": preference_accuracy(model, tokenizer, held_out)}
    }
    if corpus:
        sides["before"] |= _score_text(model, tokenizer, corpus, on_progress)
    set_seed(plan.seed)
    settings = DPOSettings(seed=plan.seed)
    with warn_unmoved(model):
        train_dpo(model, tokenizer, learned, settings, on_progress)
    runs.save_model(folder, model.eval(), tokenizer)
    sides["after"] = {"preferred": preference_accuracy(model, tokenizer, held_out)}
    record["scores"] = {}
    if corpus:
        record |= judge(model, tokenizer, corpus, on_progress)
        sides["after"]["bits_per_byte"] = record["scores"]["test"]["bits_per_byte"]
    record["tune"] |= sides
    runs.write_record(folder, record | {"parameters": count_parameters(model)})
    return True


def _describe(model: CausalModel, plan: Tuning, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "rung": find_rung_name(type(model)),
        **{key: base[key] for key in ("recipe", "corpus", "tokenizer") if key in base},
        **describe_base(plan.base, model),
        "tune": {"plan": asdict(plan)},
        "places": describe_places(base=plan.base, data=plan.data, preference=plan.preference),
        **describe_surroundings(plan.seed),
    }


def _describe_data(data: Conversations) -> dict[str, Any]:
    sizes = {"train": data.train, "validation": data.validation, **data.tests}
    return {
        "data": data.name,
        "fingerprint": data.fingerprint,
        "conversations": {name: len(found) for name, found in sizes.items()},
    }


@distributed.on_main
def _begin(
    plan: Tuning,
    base: dict[str, Any],
    made: tuple[CausalModel, PreTrainedTokenizerBase],
    folder: Path,
    on_progress: OnProgress,
    began: float,
) -> _Begun:
    """Read the conversations, judge the base, and write the record: last, after all that may be
    refused.
    """
    make_training_arguments(
        _make_settings(plan, began), folder, 1
    )  # refuses what the Trainer would
    student = _Student(
        model=made[0],
        tokenizer=made[1],
        data=load_conversations(plan.data),
        corpus=read_own(plan.base, base) if "recipe" in base else None,
    )
    record = _describe(student.model, plan, base)
    record["tune"] |= _describe_data(student.data)
    judging = now()
    record["tune"]["before"] = _find_before(plan, folder, record) or _judge_before(
        student, on_progress
    )
    began -= now() - judging  # as long as before will it be judged after
    _teach(*made, plan, record)
    record["tokenizer"] = describe_tokenizer(
        student.tokenizer, base.get("tokenizer", {}).get("kind", plan.base)
    )
    on_progress(Progress(stage="tokenizing"))
    examples = _encode(student, plan, record["rung"])
    record["tune"] |= {"rows": len(examples), "cut": examples.cut, "left_out": examples.left_out}
    runs.make_folder(folder)
    remove_leftovers(folder, alone=True)
    if not find_checkpoints(folder):
        for name in (runs.METRICS, runs.SAMPLES):
            (folder / name).unlink(missing_ok=True)
    runs.write_record(folder, record)
    return _Begun(student=student, record=record, examples=examples, began=began)


def _find_before(plan: Tuning, folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """How the base did, of a tuning that is gone on with; None of one that begins.

    Raises `RunError` where what is gone on with is not what was begun.
    """
    if not find_checkpoints(folder):
        return None
    begun = runs.read_record(folder)
    same_data = begun.get("tune", {}).get("fingerprint") == record["tune"]["fingerprint"]
    for what, is_same in (
        (plan.base, begun["base"]["fingerprint"] == record["base"]["fingerprint"]),
        (plan.data, same_data),
    ):
        if not is_same:
            raise RunError(
                f"{what} has changed since {folder} was begun: choose another folder with --out"
            )
    return begun["tune"]["before"]


def _teach(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, plan: Tuning, record: dict[str, Any]
) -> None:
    """Teach the model the marks of a conversation: on all processes the same new weights."""
    set_seed(plan.seed)
    set_up_chat_format(
        model, tokenizer, LLAMA3_FORMAT if record["rung"] == "llama3" else CHATML_FORMAT
    )


def _make_settings(plan: Tuning, began: float) -> TrainSettings:
    return TrainSettings(
        steps=plan.steps,
        minutes=None
        if plan.steps or "num_train_epochs" in plan.train
        else plan.minutes or DEFAULT_MINUTES,
        arguments={**ARGUMENTS, **plan.train},
        seed=plan.seed,
        began=began,
    )


def _encode(student: _Student, plan: Tuning, rung: str) -> ConversationDataset:
    """What the assistant says, and some of the base's own text, as rows.

    Raises `CorpusError` where no answer is within what the model looks at.
    """
    model, tokenizer = student.model, student.tokenizer
    length = model.context_length or model.config.max_position_embeddings
    encoded = encode_conversations(tokenizer, student.data.train)
    if not any(any(e.assistant_mask[1 : length + 1]) for e in encoded):
        raise CorpusError(
            f"{plan.data}: no answer begins within the {length} tokens that the model looks at: "
            f"shorten what is asked"
        )
    if student.corpus:
        encoded += sample_replay(
            student.corpus, tokenizer, length, REPLAYED * sum(len(e.ids) for e in encoded)
        )
    return ConversationDataset(
        encoded, length, tokenizer.pad_token_id, packed=rung in TRANSFORMER_RUNGS
    )


def _make_callbacks(student: _Student, on_progress: OnProgress) -> TrainingCallbacks:
    """What training calls: it watches what held-out answers cost."""
    tokenizer = student.tokenizer
    watched = sample_evenly(student.data.validation, WATCHED)
    encoded, size = encode_conversations(tokenizer, watched), count_answer_bytes(watched)

    def show(progress: Progress) -> None:
        note = f"{progress.tokens_per_second:,.0f} tokens/s"
        if progress.bits_per_byte is not None:
            note += f", {progress.bits_per_byte:.3f} bits per byte of answers"
        on_progress(replace(progress, stage="tuning", note=note))

    def say(model: CausalModel) -> str:
        answer = answer_questions(model, tokenizer, watched[:1])[0]
        return f"{answer.question}\n\n{answer.given}"

    return TrainingCallbacks(
        evaluate=lambda model: score_assistant_tokens(model, encoded, size)["bits_per_byte"],
        sample=say,
        on_progress=show,
    )


def _judge_before(student: _Student, on_progress: OnProgress) -> dict[str, Any]:
    """How the base does: on its text, and asked in plain text."""
    text = (
        _score_text(student.model, student.tokenizer, student.corpus, on_progress)
        if student.corpus
        else {}
    )
    return {
        **text,
        "answers": {
            name: _judge_answers(student, found, on_progress)[0]
            for name, found in student.data.tests.items()
        },
    }


def _judge_after(student: _Student, record: dict[str, Any], on_progress: OnProgress) -> None:
    """The same of the tuned one, beside looking answers up; and some of its best and worst
    answers.
    """
    found = {
        name: _judge_answers(student, asked, on_progress)
        for name, asked in student.data.tests.items()
    }
    best = sorted(
        (a for _, answers in found.values() for a in answers), key=lambda answer: -answer.f1
    )
    record["tune"] |= {
        "after": {"answers": {name: summary for name, (summary, _) in found.items()}},
        "lookup": {
            name: score_retrieval(student.data.train, sample_evenly(asked, ASKED))
            for name, asked in student.data.tests.items()
        },
        "best": [asdict(answer) for answer in best[:SHOWN]],
        "worst": [asdict(answer) for answer in best[SHOWN:][-SHOWN:]],
    }
    record["scores"] = {}
    if student.corpus:
        record |= judge(student.model, student.tokenizer, student.corpus, on_progress)
        record["tune"]["after"]["bits_per_byte"] = record["scores"]["test"]["bits_per_byte"]


def _score_text(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, on_progress: OnProgress
) -> dict[str, float]:
    """Bits per byte of the base's own test text."""
    on_progress(Progress(stage="scoring"))
    score = score_documents(model.eval(), tokenizer, corpus.test["text"])
    return {"bits_per_byte": score.bits_per_byte}


def _judge_answers(
    student: _Student, asked: Sequence[Conversation], on_progress: OnProgress
) -> tuple[dict[str, float], list[GradedAnswer]]:
    """What answers are worth, and what the expected ones cost, on questions from all over a set."""
    asked, model, tokenizer = sample_evenly(asked, ASKED), student.model.eval(), student.tokenizer
    answers = answer_questions(model, tokenizer, asked, on_progress)
    write = encode_conversations if tokenizer.chat_template else encode_plain_conversations
    return summarize_answers(answers) | score_assistant_tokens(
        model, write(tokenizer, asked), count_answer_bytes(asked)
    ), answers
