"""Shared ground for the tests of the server: served models of every rung, and servers of them.

Its packages are imported where they are needed: without them the tests are skipped, one by one.
"""

import contextlib
import copy
import json
import socket
import threading
import time

import pytest

from tests.conftest import TINY, shake

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


class Listening:
    """A server of these runs in a thread of its own."""

    def __init__(self, served, **limits):
        import uvicorn

        from rung.serve.app import build_app
        from rung.serve.limits import Limits

        self.app = build_app(served, Limits(**limits))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # soon full
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, log_level="error", timeout_graceful_shutdown=2)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def __enter__(self):
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()

    def post(self, path="/v1/completions", **body):
        import httpx

        headers = body.pop("headers", {})
        return httpx.post(self.url + path, json=body, headers=headers, timeout=300)

    def measure(self, name):
        """The sum of what /metrics says of it."""
        import httpx

        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def wait_until(holds, seconds=300):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.01)


@contextlib.contextmanager
def raw_stream(server, **body):
    """A connection of our own, whose client reads when it likes."""
    content = json.dumps(
        {"model": "llama3", "prompt": "the", "stream": True, "logit_bias": None, **body}
    ).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield connection


class Counting:
    """0, 1, 2, ..."""

    def __init__(self, seed):
        self.at = -1

    def take_next(self):
        self.at += 1
        return self.at


def say(ids, monkeypatch):
    """Have every model say these tokens."""
    monkeypatch.setattr(
        "rung.serve.engine.sample_each",
        lambda logits, settings, streams: [ids[d.take_next()] for d in streams],
    )
    monkeypatch.setattr("rung.serve.sequences.RandomStream", Counting)
    monkeypatch.setattr("rung.serve.engine.NOTIFY_SECONDS", 0.0)


@pytest.fixture(scope="session")
def served(make_tiny, tokenizer):
    """Every rung; the one called chat has a template."""
    from rung.serve.registry import ServedModel

    made = {name: ServedModel(name, shake(make_tiny(name)), tokenizer, {}) for name in TINY}
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = TEMPLATE
    return made | {"chat": ServedModel("chat", made["llama3"].model, chatting, {})}


@pytest.fixture
def endless(served, monkeypatch):
    """A model that never comes to an end by itself."""
    monkeypatch.setattr(
        "rung.serve.engine.sample_each", lambda logits, settings, streams: [65] * len(settings)
    )
    return {"llama3": served["llama3"]}


@pytest.fixture(scope="module")
def server(served):
    with Listening(served, max_body_bytes=1_000_000, max_tokens=20_000) as listening:
        yield listening


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=300)
