"""What a text says on its way: whole characters, and nothing from a stop string on."""

import json

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from rung.serve.registry import ServedModel  # noqa: E402
from tests.serve.conftest import Listening, say  # noqa: E402


def test_stop_strings_end_it_wherever_tokens_do(client):
    asked = {"model": "ngram", "prompt": "the cat", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[4:7]
    assert " " in stop, "it is to lie across words"
    for stream in (False, True):
        made = client.completions.create(**asked, stop=["never", stop], stream=stream)
        choices = [event.choices[0] for event in made] if stream else made.choices
        assert "".join(choice.text for choice in choices) == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_a_character_of_many_tokens_arrives_whole(make_tiny, tokenizer, monkeypatch):
    """A model that says one text, whatever it is asked."""
    text = "naïve 🙂 日本"
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    assert len(ids) > len(text)
    say(ids, monkeypatch)
    with Listening({"m": ServedModel("m", make_tiny("bigram"), tokenizer, {})}) as server:
        body = {"model": "m", "prompt": "", "max_tokens": 50, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            events = [
                json.loads(line[6:])
                for line in response.iter_lines()
                if line and "[DONE]" not in line
            ]
    pieces = [event["choices"][0]["text"] for event in events]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
