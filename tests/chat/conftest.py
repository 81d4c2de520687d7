"""Chats of the tests: formats, a conversation, and tiny models that know a format."""

import copy

import pytest

from rung.chat.template import CHATML_FORMAT, LLAMA3_FORMAT, set_up_chat_format

FORMATS = {"llama3": LLAMA3_FORMAT, "chatml": CHATML_FORMAT}
TALK = [
    {"role": "system", "content": "be a cat"},
    {"role": "user", "content": " the mat? "},
    {"role": "assistant", "content": "the cat sat\n\non the mat"},
    {"role": "user", "content": "a dog"},
    {"role": "assistant", "content": "no"},
]


def ask(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def make_chat(make_tiny, tokenizer):
    """A tiny model that was taught a format, and its tokenizer."""

    def make(name, chat_format=None, **fields):
        model, own = copy.deepcopy(make_tiny(name, **fields)), copy.deepcopy(tokenizer)
        set_up_chat_format(
            model, own, chat_format or (LLAMA3_FORMAT if name == "llama3" else CHATML_FORMAT)
        )
        return model, own

    return make
