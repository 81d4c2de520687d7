"""The examples in the library's docstrings, run as they stand."""

import doctest
import importlib
import json

import pytest

import rung

FUNCTIONS = sorted(name for name in rung.FUNCTIONS if name.islower())
QUESTIONS = ("Which colour has the cat?", "Tell me the colour of the dog.", "The mat is")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_example_does_what_it_says(name, tmp_path, monkeypatch, prose):
    """In a folder that has `my.txt`, a text, and `chats.jsonl`, some conversations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(prose)
    chats = [
        {"prompt": f"{question} ({number})", "completion": "It is red."}
        for number in range(10)
        for question in QUESTIONS
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    module = importlib.import_module(f"rung.api.{rung.FUNCTIONS[name]}")
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(module, name), name, module, extraglobs={"rung": rung}
    )
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
