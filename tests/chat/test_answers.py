"""Answers graded, and the retrieval baseline."""

import pytest

from rung.chat.answers import (
    GradedAnswer,
    RetrievalBaseline,
    answer_questions,
    encode_plain_conversations,
    sample_evenly,
    score_assistant_tokens,
)
from tests.chat.conftest import ask


class TestAnswers:
    @pytest.mark.parametrize(
        ("expected", "given", "f1", "exact"),
        [
            ("Return the number of items.", "return number of items", 1.0, True),
            ("the cat sat", "a cat ran", 0.5, False),
            ("cat cat dog", "cat", 0.5, False),
            ("join(x, *p)", "join(x, b)", 2 / 3, False),
            ("the", "", 1.0, True),
            ("cat", "", 0.0, False),
        ],
    )
    def test_token_f1(self, expected, given, f1, exact):
        answer = GradedAnswer(question="", expected=expected, given=given)
        assert answer.f1 == pytest.approx(f1)
        assert answer.is_exact == exact

    def test_questions_are_taken_from_all_over(self):
        assert sample_evenly(list(range(250)), 100)[::50] == [0, 100]
        assert sample_evenly(list(range(399)), 100) == list(range(0, 300, 3))
        assert sample_evenly([1, 2], 100) == [1, 2]

    def test_retrieval_finds_the_question_that_is_most_alike(self):
        known = [
            ask("What does `len` do?", "length"),
            ask("What does `max` do?", "largest"),
            ask("Explain `len`.", "L"),
        ]
        assert RetrievalBaseline(known, idf=False).answer("What does `max` do, pray?") == "largest"
        assert RetrievalBaseline(known, idf=False).answer("zebra") == ""
        assert RetrievalBaseline(known, idf=True).answer("`max`") == "largest"

    def test_a_model_without_chat_is_asked_in_plain_text(self, make_tiny, tokenizer):
        model = make_tiny("llama3")
        talks = [ask("the cat", "sat on the mat"), ask("a dog", "is not a cat")]
        assert len(answer_questions(model, tokenizer, talks)) == 2
        plain = encode_plain_conversations(tokenizer, talks)
        text = [
            tokenizer.decode(
                [i for i, own in zip(e.ids, e.assistant_mask, strict=True) if own][:-1]
            )
            for e in plain
        ]
        assert text == ["sat on the mat", "is not a cat"]
        costs = score_assistant_tokens(model, plain, 26)
        assert costs["token_perplexity"] == pytest.approx(model.config.vocab_size, rel=0.2)
