"""Scores of a tuned run: its answers to held-out questions, and its own text, before and after."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

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
from rung.chat.conversations import Conversations
from rung.chat.template import Conversation, encode_conversations
from rung.data.corpus import Corpus
from rung.evaluation.score import score_documents
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress
from rung.workflows.record import score_run

# Questions of each set that are answered.
QUESTIONS = 100
# How many of the best answers are kept, and how many of the worst.
SHOWN_ANSWERS = 3


@dataclass(frozen=True, kw_only=True)
class ModelWithData:
    """A model that is tuned, with the conversations, and the base's own corpus where it has one."""

    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    conversations: Conversations
    corpus: Corpus | None


def score_base(data: ModelWithData, on_progress: OnProgress) -> dict[str, Any]:
    """Score the base on its own text, and on questions asked in plain text."""
    text = score_test(data.model, data.tokenizer, data.corpus, on_progress) if data.corpus else {}
    answers = {
        name: _score_answers(data, questions, on_progress)[0]
        for name, questions in data.conversations.tests.items()
    }
    return {**text, "answers": answers}


def score_tuned(
    data: ModelWithData, record: dict[str, Any], on_progress: OnProgress
) -> dict[str, Any]:
    """Score the tuned model as the base was scored, beside looking answers up.

    Returns what is added to the run's record, with some of the best and worst answers.
    """
    tests = data.conversations.tests
    found = {
        name: _score_answers(data, questions, on_progress) for name, questions in tests.items()
    }
    graded = (answer for _, answers in found.values() for answer in answers)
    best = sorted(graded, key=lambda answer: -answer.f1)
    after: dict[str, Any] = {"answers": {name: summary for name, (summary, _) in found.items()}}
    added: dict[str, Any] = {"scores": {}}
    if data.corpus:
        added = score_run(data.model, data.tokenizer, data.corpus, on_progress)
        after["bits_per_byte"] = added["scores"]["test"]["bits_per_byte"]
    added["tune"] = record["tune"] | {
        "after": after,
        "lookup": {
            name: score_retrieval(data.conversations.train, sample_evenly(questions, QUESTIONS))
            for name, questions in tests.items()
        },
        "best": [asdict(answer) for answer in best[:SHOWN_ANSWERS]],
        "worst": [asdict(answer) for answer in best[SHOWN_ANSWERS:][-SHOWN_ANSWERS:]],
    }
    return added


def score_test(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, on_progress: OnProgress
) -> dict[str, float]:
    """Score the test text of a corpus, in bits per byte."""
    on_progress(Progress(stage="scoring"))
    score = score_documents(model.eval(), tokenizer, corpus.test["text"])
    return {"bits_per_byte": score.bits_per_byte}


def _score_answers(
    data: ModelWithData, questions: Sequence[Conversation], on_progress: OnProgress
) -> tuple[dict[str, float], list[GradedAnswer]]:
    """Grade the model's answers to questions from all over a set, and score the expected ones."""
    model, tokenizer = data.model.eval(), data.tokenizer
    questions = sample_evenly(questions, QUESTIONS)
    answers = answer_questions(model, tokenizer, questions, on_progress)
    encode = encode_conversations if tokenizer.chat_template else encode_plain_conversations
    costs = score_assistant_tokens(
        model, encode(tokenizer, questions), count_answer_bytes(questions)
    )
    return summarize_answers(answers) | costs, answers
