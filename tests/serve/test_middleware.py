"""What is refused before a request is read: size, key, host and origin."""

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from rung.serve.access import (  # noqa: E402
    find_allowed_hosts,
)
from tests.serve.conftest import Listening  # noqa: E402


def test_too_large_a_body_is_refused_unread(server):
    large = server.post(model="gpt2", prompt="a" * 10_000_000)
    assert large.status_code == 413 and large.json()["error"]["code"] == "request_too_large"

    def drip():
        for _ in range(100):
            yield b" " * 100_000

    assert (
        httpx.post(f"{server.url}/v1/completions", content=drip(), timeout=300).status_code == 413
    )
    many = server.post(model="rnn", prompt="a b " * 40_000)
    assert many.status_code == 400 and many.json()["error"]["code"] == "context_length_exceeded"
    long = server.post(model="rnn", prompt="a b " * 1_000, max_tokens=3)
    assert long.json()["usage"]["completion_tokens"] == 3


def test_the_key_and_who_asks(served):
    with Listening(
        {"gpt2": served["gpt2"]},
        api_key="séc-ret",
        hosts=find_allowed_hosts("localhost"),
        origins=("http://good.example",),
    ) as server:
        asked = {"model": "gpt2", "prompt": "a"}
        assert server.post(**asked).status_code == 401
        assert (
            server.post(**asked, headers={"Authorization": "Bearer secret"}).json()["error"]["code"]
            == "invalid_api_key"
        )
        key = {"Authorization": "Bearer séc-ret".encode()}
        assert server.post(**asked, headers=key).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        origins = {
            "http://evil.example": 403,
            "null": 403,
            "http://good.example": 200,
            server.url: 200,
        }
        for origin, status in origins.items():
            assert server.post(**asked, headers=key | {"Origin": origin}).status_code == status
        for host in ("evil.example", "[::1", "127.0.0.1.evil.example"):
            assert server.post(**asked, headers=key | {"Host": host}).status_code in (400, 403)
        asks = {"Origin": "http://good.example", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{server.url}/v1/completions", headers=asks)
        assert allowed.headers["access-control-allow-origin"] == "http://good.example"


def test_a_foreign_name_is_let_in_when_it_is_allowed(served):
    with Listening(
        {"gpt2": served["gpt2"]}, hosts=find_allowed_hosts("127.0.0.2", ["my.lan"])
    ) as server:
        for host, status in {
            "evil.example": 403,
            "MY.lan:80": 200,
            "[0::1]": 200,
            "127.0.0.2": 200,
        }.items():
            assert (
                httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == status
            )


def test_head_is_a_get_without_its_body_and_every_answer_has_a_number(server):
    numbers = set()
    for address in (
        "/",
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/models/gpt2",
        "/page/app.js",
        "/api/rungs",
    ):
        got, answer = httpx.get(server.url + address), httpx.head(server.url + address)
        assert (answer.status_code, answer.content) == (200, b"")
        assert got.headers["content-type"] == answer.headers["content-type"] and got.content
        numbers |= {got.headers["x-request-id"], answer.headers["x-request-id"]}
    refused = [
        httpx.head(f"{server.url}/v1/completions"),
        httpx.head(f"{server.url}/nowhere"),
        server.post(model="no"),
    ]
    assert [answer.status_code for answer in refused] == [405, 404, 404]
    assert len(numbers | {answer.headers["x-request-id"] for answer in refused}) == 17
