"""Held-out questions answered and judged: token F1, exact match, and what looking answers up would
have got.
"""

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

QUESTIONS_AT_ONCE = 16  # questions
MAX_ANSWER_TOKENS = 128  # tokens of an answer
MAX_NGRAM = 3  # words, that retrieval compares at the most


@dataclass(frozen=True, kw_only=True)
class GradedAnswer:
    """A question, its answer, the one given, and how much of it is right: token F1 (Rajpurkar et
    al. 2016).
    """

    question: str
    expected: str
    given: str

    @property
    def f1(self) -> float:
        """The harmonic mean of how many words given are expected, and how many expected are
        given.
        """
        expected, given = normalize_answer(self.expected), normalize_answer(self.given)
        if not expected or not given:
            return float(expected == given)
        shared = sum((Counter(expected) & Counter(given)).values())
        return 2 * shared / (len(expected) + len(given))

    @property
    def is_exact(self) -> bool:
        """Whether it is the expected one, word for word."""
        return normalize_answer(self.expected) == normalize_answer(self.given)


def normalize_answer(text: str) -> list[str]:
    """Words and numbers in lower case, without articles and what stands between them."""
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def summarize_answers(answers: Sequence[GradedAnswer]) -> dict[str, float]:
    """Mean token F1 and share of exact answers."""
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
    """The model's likeliest answer to the last question of each, given all that was said before it.

    One without a chat template is asked in plain text, and has answered where it leaves a blank
    line.
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
    """What the assistant's tokens cost: bits per byte of what it says, and their perplexity."""
    costs = compute_nll(model, [e.ids for e in encoded])
    said = [torch.tensor(e.assistant_mask[1:]) for e in encoded]
    nats = sum(cost[mask].double().sum().item() for cost, mask in zip(costs, said, strict=True))
    return {
        "bits_per_byte": nats / math.log(2) / max(1, answer_bytes),
        "token_perplexity": perplexity(nats, sum(int(mask.sum()) for mask in said)),
    }


def count_answer_bytes(conversations: Sequence[Conversation]) -> int:
    """UTF-8 bytes of all that the assistant says."""
    return sum(
        len(m["content"].encode()) for c in conversations for m in c if m["role"] == "assistant"
    )


def encode_plain_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]
) -> list[EncodedConversation]:
    """Each conversation for a model that knows no chat: what is said, a blank line between; its end
    is the last's.
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
    """What was said, each message a paragraph: what comes next is an answer."""
    return "".join(message["content"] + "\n\n" for message in before)


def split_last_answer(conversation: Conversation) -> tuple[Conversation, str]:
    """All before the last thing that the assistant says, and that."""
    last = max(i for i, message in enumerate(conversation) if message["role"] == "assistant")
    return conversation[:last], conversation[last]["content"]


def sample_evenly(conversations: Sequence[Conversation], count: int) -> list[Conversation]:
    """`count` of them at the most, from all over."""
    stride = max(1, len(conversations) // count)
    return list(conversations[::stride][:count])


class RetrievalBaseline:
    """The answer to the most similar question that was learned from: no model at all, and what one
    must beat.

    Similar are questions that share many n-grams of one to three words; with `rare` a shared n-gram
    counts for more the fewer questions have it (the idf of Spärck Jones 1972), which finds the
    object by its name.
    """

    def __init__(self, train: Sequence[Conversation], *, rare: bool) -> None:
        asked = [
            (before[-1]["content"], answer)
            for before, answer in map(split_last_answer, train)
            if before
        ]
        questions = [_find_ngrams(question) for question, _ in asked]
        self.answers = [answer for _, answer in asked]
        self.homes: dict[str, list[int]] = defaultdict(list)
        for number, ngrams in enumerate(questions):
            for ngram in ngrams:
                self.homes[ngram].append(number)
        self.worth = {
            n: math.log(len(asked) / len(home)) if rare else 1.0 for n, home in self.homes.items()
        }
        self.sizes = [sum(self.worth[ngram] for ngram in ngrams) for ngrams in questions]

    def answer(self, question: str) -> str:
        """Of the question that has the largest share of its n-grams in common (Dice 1945); empty
        where none has one.
        """
        ngrams = sorted(ngram for ngram in _find_ngrams(question) if ngram in self.homes)
        shared: dict[int, float] = defaultdict(float)
        for ngram in ngrams:
            for number in self.homes[ngram]:
                shared[number] += self.worth[ngram]
        own = sum(self.worth[ngram] for ngram in ngrams)
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
    """What the answers of the most similar questions are worth."""
    found = {}
    for name, rare in (("n-grams", False), ("rare n-grams", True)):
        retrieval = RetrievalBaseline(known, rare=rare)
        pairs = [
            (before[-1]["content"], expected) for before, expected in map(split_last_answer, asked)
        ]
        found[name] = summarize_answers(
            [GradedAnswer(question=q, expected=e, given=retrieval.answer(q)) for q, e in pairs]
        )
    return found
