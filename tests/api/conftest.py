"""A folder with a text and some runs on it, shared by the tests of the library."""

import contextlib

import pytest

import rung


@pytest.fixture(scope="package")
def ground(tmp_path_factory, prose):
    """A folder with `my.txt`, a climb of two rungs that count, and a small GPT-2."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "my.txt").write_text(prose)
    with contextlib.chdir(folder):
        rung.climb("my.txt", rungs="bigram, ngram")
        rung.train("gpt2", "my.txt", out="small", steps=2, set={"model.hidden_size": 32})
    return folder


@pytest.fixture(autouse=True)
def here(ground, monkeypatch):
    monkeypatch.chdir(ground)
