"""A refusal has OpenAI's form, whatever was wrong."""

import copy

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from rung.serve.registry import ServedModel  # noqa: E402
from tests.serve.conftest import TEMPLATE, Listening  # noqa: E402

NAN = b'{"model": "gpt2", "temperature": NaN}'


def test_a_token_beyond_the_models_is_that_requests_fault(served, tokenizer):
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["<|one_more|>"], special_tokens=False)
    longer.chat_template = TEMPLATE
    with Listening({"m": ServedModel("m", served["llama3"].model, longer, {})}) as server:
        for path, body in (
            ("/v1/completions", {"prompt": "a<|one_more|>b"}),
            ("/v1/completions", {"prompt": [0, len(tokenizer)]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|one_more|>"}]}),
            ("/api/next", {"text": "<|one_more|>"}),
            ("/api/surprisal", {"text": "<|one_more|>"}),
            ("/api/attention", {"text": "<|one_more|>"}),
        ):
            answer = server.post(path, model="m", **body)
            assert (
                answer.status_code == 400
                and f"the token {len(tokenizer)} is none of" in answer.text
            )
        assert server.post(model="m", prompt="a").status_code == 200


def test_a_body_that_is_not_said_to_be_json(server):
    content = b'{"model": "gpt2", "prompt": "a"}'
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
        assert answer.status_code == 400
        assert "send it as Content-Type: application/json" in answer.json()["error"]["message"]


def test_other_refusals_have_the_same_form(server):
    assert server.post(model="no-such").status_code == 404
    assert server.post(model="no-such").json()["error"]["code"] == "model_not_found"
    for answer in (httpx.get(f"{server.url}/nowhere"), httpx.get(f"{server.url}/v1/completions")):
        assert answer.status_code in (404, 405) and set(answer.json()["error"]) == {
            "message",
            "type",
            "param",
            "code",
        }
    for content in (
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"model": "\\ud800"}',
        b"1" * 5000,
        b"",
        b"null",
        b"NaN",
        NAN,
    ):
        answer = httpx.post(
            f"{server.url}/v1/completions",
            content=content,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 400 and answer.json()["error"]["message"]
