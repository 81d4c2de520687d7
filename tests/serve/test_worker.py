"""Many texts at once in one worker, and a step that fails."""

import asyncio
import json

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from rung.serve import engine as engines  # noqa: E402
from tests.serve.conftest import Listening  # noqa: E402


def test_sixty_four_streams_at_once(server):
    """More than there are slots: the others wait, none is lost, and each gets what it would
    alone.
    """

    async def ask(client, i):
        body = {
            "model": ["llama3", "gpt2", "ngram", "rnn"][i % 4],
            "prompt": "the cat",
            "seed": i,
            "stream": True,
        }
        async with client.stream(
            "POST", "/v1/completions", json=body | {"max_tokens": 5 + i}
        ) as response:
            lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])

    async def ask_all():
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(64)))

    texts = asyncio.run(ask_all())
    for i in (0, 17, 42, 63):
        asked = {"model": ["llama3", "gpt2", "ngram", "rnn"][i % 4], "prompt": "the cat", "seed": i}
        assert server.post(**asked, max_tokens=5 + i).json()["choices"][0]["text"] == texts[i]
    assert server.measure("rung_running_texts") == server.measure("rung_waiting_texts") == 0


def test_a_step_that_fails_ends_its_texts_and_no_more(served, monkeypatch):
    with Listening({"llama3": served["llama3"]}) as server:
        kept = engines.sample_each

        def fail(*_):
            monkeypatch.setattr(engines, "sample_each", kept)
            raise RuntimeError("out of order")

        monkeypatch.setattr(engines, "sample_each", fail)
        answer = server.post(model="llama3", prompt="a")
        assert answer.status_code == 500 and "out of order" not in answer.text
        assert server.post(model="llama3", prompt="a").status_code == 200
