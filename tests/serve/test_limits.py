"""What a server bounds: its limits are checked, and a request that takes too long ends."""

import json
import socket

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
pytest.importorskip("httpx", reason=reason)

from rung.errors import RecipeError  # noqa: E402
from rung.serve.limits import Limits  # noqa: E402
from tests.serve.conftest import Listening  # noqa: E402


def test_what_takes_too_long_is_ended(endless):
    with Listening(endless, seconds=0.3, max_tokens=100_000, body_seconds=0.3) as server:
        asked = {"model": "llama3", "prompt": "a", "max_tokens": 100_000}
        assert server.post(**asked).json()["error"]["code"] == "timeout"
        assert server.post(**asked).status_code == 504
        lines = server.post(**asked, stream=True).text.strip().splitlines()
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"
            )
            assert b" 408 " in connection.recv(1000)


def test_limits_are_checked():
    for wrong in ({"max_batch": 0}, {"max_queue": -1}, {"seconds": 0.0}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))} is "):
            Limits(**wrong)
