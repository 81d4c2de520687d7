"""Questions and answers of the interpreter's own documentation."""

import pytest

from rung.chat.conversations import DEFAULT_CONVERSATIONS, load_conversations
from rung.chat.python_qa import PHRASINGS, make_python_qa
from rung.data.sources import read_stdlib_modules


@pytest.fixture(scope="module")
def parts():
    return make_python_qa()


class TestQuestions:
    def test_held_out_objects_and_phrasings_were_never_learned(self, parts):
        learned = {c[0]["content"] for c in parts["train"]}
        named = {name_in(c) for c in parts["train"]}
        for part in ("phrasings", "validation"):
            assert not learned & {c[0]["content"] for c in parts[part]}
            assert {name_in(c) for c in parts[part]} <= named
        assert not named & {name_in(c) for c in parts["objects"]}
        assert min(map(len, parts.values())) >= 50

    def test_the_answer_is_the_interpreters_own(self, parts):
        import os.path
        import statistics

        answers = {c[0]["content"]: c[1]["content"] for part in parts.values() for c in part}
        first = statistics.geometric_mean.__doc__.split("\n\n")[0]
        assert " ".join(first.split()) in {
            answers.get(way.format(name="statistics.geometric_mean")) for way in PHRASINGS["does"]
        }
        assert "join(a, *p)" in {
            answers.get(way.format(name="os.path.join")) for way in PHRASINGS["takes"]
        }
        assert os.path.join

    def test_it_is_the_same_every_time(self, monkeypatch):
        some = [
            each for each in read_stdlib_modules() if each[0] in ("statistics", "json", "bisect")
        ]
        monkeypatch.setattr("rung.chat.python_qa.read_stdlib_modules", lambda: iter(some))
        parts = make_python_qa()
        assert make_python_qa() == parts and parts["train"]
        assert load_conversations(DEFAULT_CONVERSATIONS).name == DEFAULT_CONVERSATIONS


def name_in(conversation):
    return conversation[0]["content"].split("`")[1]
