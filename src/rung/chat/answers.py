"""Answer held-out questions and grade the answers by token F1 and exact match, beside retrieval."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from rung.chat.template import Conversation, EncodedConversation, encode_prompt, find_chat_stop_ids
from rung.data.tokenizer import encode_ordinary
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.metrics import perplexity
from rung.generation.decoder import Decoder
from rung.generation.generate import generate_batch, generate_from_ids
from rung.generation.sampling import Sampling
from rung.models.base import CausalModel
from rung.progress import OnProgress, Progress, ignore_progress

QUESTIONS_AT_ONCE = 16
MAX_ANSWER_TOKENS = 128
MAX_NGRAM = 3  # words of the longest n-gram that retrieval compares


@dataclass(frozen=True, kw_only=True)
class GradedAnswer:
    """A question, its expected answer and the given one, graded as in Rajpurkar et al. 2016."""

    question: str
    expected: str
    given: str

    @property
    def f1(self) -> float:
        """Return the token F1: the harmonic mean of the words' precision and recall."""
        expected, given = normalize_answer(self.expected), normalize_answer(self.given)
        if not expected or not given:
            return float(expected == given)
        shared = sum((Counter(expected) & Counter(given)).values())
        return 2 * shared / (len(expected) + len(given))

    @property
    def is_exact(self) -> bool:
        """Return whether the answers are equal, word for word."""
        return normalize_answer(self.expected) == normalize_answer(self.given)


def normalize_answer(text: str) -> list[str]:
    """Return the words and numbers in lower case, without articles and punctuation."""
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def summarize_answers(answers: Sequence[GradedAnswer]) -> dict[str, float]:
    """Return the mean token F1 and the share of exact answers."""
    return {
        "f1": fmean(a.f1 for a in answers),
        "exact": fmean(a.is_exact for a in answers),
        "questions": len(answers),
    }


def answer_questions(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    on_progress: OnProgress = ignore_progress,
) -> list[GradedAnswer]:
    """Answer the last question of each conversation greedily.

    A model without a chat template is asked in plain text, and its answer ends at a blank line.
    """
    stop_ids, decoder = find_chat_stop_ids(model, tokenizer), Decoder(model)
    plainly = not tokenizer.chat_template
    sampling = Sampling(
        max_new_tokens=MAX_ANSWER_TOKENS, temperature=0, stop=("\n\n",) if plainly else ()
    )
    answers: list[GradedAnswer] = []
    for at in range(0, len(conversations), QUESTIONS_AT_ONCE):
        batch = [
            split_last_answer(conversation)
            for conversation in conversations[at : at + QUESTIONS_AT_ONCE]
        ]
        if plainly:
            given = generate_batch(
                decoder, tokenizer, [format_plain_prompt(before) for before, _ in batch], sampling
            )
        else:
            prompts = [encode_prompt(tokenizer, before) for before, _ in batch]
            given = generate_from_ids(decoder, tokenizer, prompts, sampling, stop_ids)
        for (before, expected), made in zip(batch, given, strict=True):
            answers.append(
                GradedAnswer(question=before[-1]["content"], expected=expected, given=made.text)
            )
        on_progress(Progress("answering", len(answers), len(conversations)))
    return answers


def score_assistant_tokens(
    model: CausalModel, encoded: Sequence[EncodedConversation], answer_bytes: int
) -> dict[str, float]:
    """Return the bits per byte and the token perplexity of the assistant's answers."""
    costs = compute_nll(model, [e.ids for e in encoded])
    said = [torch.tensor(e.assistant_mask[1:]) for e in encoded]
    nats = sum(cost[mask].double().sum().item() for cost, mask in zip(costs, said, strict=True))
    return {
        "bits_per_byte": nats / math.log(2) / max(1, answer_bytes),
        "token_perplexity": perplexity(nats, sum(int(mask.sum()) for mask in said)),
    }


def count_answer_bytes(conversations: Sequence[Conversation]) -> int:
    """Count the UTF-8 bytes of all answers of the assistant."""
    return sum(
        len(m["content"].encode()) for c in conversations for m in c if m["role"] == "assistant"
    )


def encode_plain_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]
) -> list[EncodedConversation]:
    """Encode conversations as plain text, for a model without a chat template.

    Blank lines stand between the messages; the mask covers the last answer and the end of text.
    """
    found = []
    for conversation in conversations:
        before, answer = split_last_answer(conversation)
        asked = format_plain_prompt(before)
        encoding = encode_ordinary(tokenizer, [asked + answer])[0]
        said = [start >= len(asked) for start, _ in encoding.offsets]
        found.append(
            EncodedConversation(
                [tokenizer.bos_token_id, *encoding.ids, tokenizer.eos_token_id],
                [False, *said, True],
            )
        )
    return found


def format_plain_prompt(before: Conversation) -> str:
    """Format the messages as paragraphs, after which an answer follows."""
    return "".join(message["content"] + "\n\n" for message in before)


def split_last_answer(conversation: Conversation) -> tuple[Conversation, str]:
    """Return the messages before the assistant's last answer, and the answer."""
    last = max(i for i, message in enumerate(conversation) if message["role"] == "assistant")
    return conversation[:last], conversation[last]["content"]


def sample_evenly(conversations: Sequence[Conversation], count: int) -> list[Conversation]:
    """Return at most `count` conversations, evenly spread over all."""
    stride = max(1, len(conversations) // count)
    return list(conversations[::stride][:count])


class RetrievalBaseline:
    """Answers with the answer of the most similar training question: the baseline to beat.

    Questions are similar that share many n-grams of one to three words. With `idf` a shared n-gram
    counts for more the fewer questions have it (Spärck Jones 1972), which finds an object by its
    name.
    """

    def __init__(self, train: Sequence[Conversation], *, idf: bool) -> None:
        asked = [
            (before[-1]["content"], answer)
            for before, answer in map(split_last_answer, train)
            if before
        ]
        questions = [_find_ngrams(question) for question, _ in asked]
        self.answers = [answer for _, answer in asked]
        self.questions_with: dict[str, list[int]] = defaultdict(list)
        for number, ngrams in enumerate(questions):
            for ngram in ngrams:
                self.questions_with[ngram].append(number)
        self.weights = {
            n: math.log(len(asked) / len(home)) if idf else 1.0
            for n, home in self.questions_with.items()
        }
        self.sizes = [sum(self.weights[ngram] for ngram in ngrams) for ngrams in questions]

    def answer(self, question: str) -> str:
        """Return the answer of the question with the largest Dice coefficient (Dice 1945).

        It is empty where no question shares an n-gram.
        """
        ngrams = sorted(ngram for ngram in _find_ngrams(question) if ngram in self.questions_with)
        shared: dict[int, float] = defaultdict(float)
        for ngram in ngrams:
            for number in self.questions_with[ngram]:
                shared[number] += self.weights[ngram]
        own = sum(self.weights[ngram] for ngram in ngrams)
        best = max(shared, key=lambda n: shared[n] / max(1e-9, own + self.sizes[n]), default=None)
        return "" if best is None else self.answers[best]


def _find_ngrams(question: str) -> set[str]:
    words = re.findall(r"[\w.]*\w", question.lower())
    return {
        " ".join(words[i : i + n])
        for n in range(1, MAX_NGRAM + 1)
        for i in range(len(words) - n + 1)
    }


def score_retrieval(
    known: Sequence[Conversation], asked: Sequence[Conversation]
) -> dict[str, dict[str, float]]:
    """Grade the answers that retrieval finds, with and without idf."""
    found = {}
    for name, idf in (("n-grams", False), ("rare n-grams", True)):
        retrieval = RetrievalBaseline(known, idf=idf)
        pairs = [
            (before[-1]["content"], expected) for before, expected in map(split_last_answer, asked)
        ]
        found[name] = summarize_answers(
            [GradedAnswer(question=q, expected=e, given=retrieval.answer(q)) for q, e in pairs]
        )
    return found
