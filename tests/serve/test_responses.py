"""Answers to clients that leave, and to those that read slowly."""

import contextlib
import time

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)


from tests.serve.conftest import Listening, raw_stream, wait_until  # noqa: E402


def test_a_client_that_goes_frees_its_slot(endless):
    with Listening(endless, max_batch=1, max_queue=1, max_tokens=100_000) as server:
        with raw_stream(server, max_tokens=100_000) as running:
            assert b"200 OK" in running.recv(100)
            with raw_stream(server, max_tokens=100_000):
                wait_until(lambda: server.measure("rung_waiting_texts") == 1)
                full = server.post(model="llama3", prompt="a")
                assert full.status_code == 429 and full.headers["retry-after"]
                assert full.json()["error"]["code"] == "queue_full"
            wait_until(lambda: server.measure("rung_waiting_texts") == 0)
            assert server.measure("rung_running_texts") == 1
        wait_until(lambda: server.measure("rung_running_texts") == 0)
        with contextlib.suppress(httpx.ReadTimeout):  # one that is not streamed
            httpx.post(
                f"{server.url}/v1/completions",
                json={"model": "llama3", "prompt": "a", "max_tokens": 99_999},
                timeout=0.2,
            )
        wait_until(lambda: server.measure("rung_running_texts") == 0)
        assert server.post(model="llama3", prompt="a").status_code == 200


def test_a_slow_reader_holds_up_nobody(endless):
    """It is waited for once its buffers are full, and goes on when it reads."""
    with (
        Listening(endless, max_batch=2, max_tokens=100_000) as server,
        raw_stream(server, max_tokens=100_000, logprobs=20) as slow,
    ):
        written, still = -1.0, 0
        while still < 3:
            now = server.measure("rung_tokens_total")
            still, written = (still + 1, now) if now == written else (0, now)
            time.sleep(0.1)
        assert written < 50_000
        for _ in range(3):
            assert server.post(model="llama3", prompt="the", max_tokens=10).status_code == 200
        while server.measure("rung_tokens_total") < written + 500:
            assert slow.recv(65536)
