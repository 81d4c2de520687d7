"""The server as other makers' clients meet it: litellm, langchain-openai and llm, each asking as it
does by itself.
"""

import copy
import os

import pytest

pytest.importorskip("fastapi", reason="needs the server's packages: pip install 'rung[serve]'")
pytest.importorskip("httpx", reason="needs httpx: pip install httpx")

from rung.serve.registry import ServedModel
from tests.conftest import shake
from tests.serve.conftest import TEMPLATE, Listening

QUESTION = [{"role": "user", "content": "the cat"}]
LONG = "the cat sat on the mat " * 30


@pytest.fixture(scope="module")
def server(make_tiny, tokenizer):
    chatting, model = copy.deepcopy(tokenizer), shake(make_tiny("llama3"))
    chatting.chat_template = TEMPLATE
    runs = {
        "base": ServedModel("base", model, tokenizer, {}),
        "chat": ServedModel("chat", model, chatting, {}),
    }
    with Listening(runs, api_key="secret") as listening:
        listening.ask = lambda **body: listening.post(
            "/v1/chat/completions" if "messages" in body else "/v1/completions",
            **body,
            headers={"Authorization": "Bearer secret"},
        ).json()["choices"][0]
        yield listening


@pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm")
@pytest.mark.slow
def test_litellm(server, monkeypatch):
    monkeypatch.setenv(
        "LITELLM_LOCAL_MODEL_COST_MAP", "True"
    )  # else it asks the network when it is imported
    litellm = pytest.importorskip("litellm", reason="needs litellm: pip install litellm")
    where = {
        "api_base": f"{server.url}/v1",
        "api_key": "secret",
        "max_retries": 0,
        "temperature": 0,
    }
    asked = {"model": "openai/chat", "messages": QUESTION, "max_tokens": 8, **where}
    wanted = server.ask(model="chat", messages=QUESTION, max_tokens=8, temperature=0)["message"][
        "content"
    ]
    made = litellm.completion(**asked, logprobs=True, top_logprobs=2)
    assert made.choices[0].message.content == wanted and made.usage.completion_tokens <= 8
    parts = litellm.completion(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == wanted
    again = [*QUESTION, made.choices[0].message.model_dump(), *QUESTION]
    assert litellm.completion(**{**asked, "messages": again}).choices[0].message.content is not None
    text = litellm.text_completion(
        model="text-completion-openai/base", prompt="the cat", max_tokens=8, **where
    )
    assert (
        text.choices[0].text
        == server.ask(model="base", prompt="the cat", max_tokens=8, temperature=0)["text"]
    )
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**asked, "messages": [{"role": "user", "content": LONG}]})
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.text_completion(
            model="text-completion-openai/base", prompt=LONG, max_tokens=8, **where
        )
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**asked, "api_key": "wrong"})


def test_langchain(server):
    langchain = pytest.importorskip(
        "langchain_openai", reason="needs langchain-openai: pip install langchain-openai"
    )
    where = {
        "base_url": f"{server.url}/v1",
        "api_key": "secret",
        "max_retries": 0,
        "temperature": 0,
        "max_tokens": 8,
    }
    wanted = server.ask(model="chat", messages=QUESTION, max_tokens=8, temperature=0)["message"][
        "content"
    ]
    chat = langchain.ChatOpenAI(model="chat", **where)
    said = chat.invoke([("system", ""), ("human", "the cat")])
    assert (
        said.usage_metadata["output_tokens"] <= 8 and said.response_metadata["system_fingerprint"]
    )
    assert (
        chat.invoke("the cat").content
        == wanted
        == "".join(part.content for part in chat.stream("the cat"))
    )
    tokens = chat.bind(logprobs=True).invoke("the cat").response_metadata["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode(errors="ignore") == wanted
    text = langchain.OpenAI(model="base", **where)
    wanted = server.ask(model="base", prompt="the cat", max_tokens=8, temperature=0)["text"]
    assert text.invoke("the cat") == wanted == "".join(text.stream("the cat"))
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        chat.invoke(LONG)
    with pytest.raises(openai.BadRequestError, match="tools is not supported here"):
        chat.bind_tools([{"name": "f", "description": "", "parameters": {}}]).invoke("the cat")


def test_llm(server, tmp_path, monkeypatch):
    llm = pytest.importorskip("llm", reason="needs llm: pip install llm")
    entry = "- model_id: {0}\n  model_name: {0}\n  api_base: {1}/v1\n  api_key_name: rung\n"
    listed = (
        entry.format("chat", server.url) + entry.format("base", server.url) + "  completion: true\n"
    )
    (tmp_path / "extra-openai-models.yaml").write_text(listed)
    (tmp_path / "keys.json").write_text('{"rung": "secret"}')
    monkeypatch.setenv("LLM_USER_PATH", os.fspath(tmp_path))
    wanted = server.ask(model="chat", messages=QUESTION, max_tokens=8, temperature=0)["message"][
        "content"
    ]
    model = llm.get_model("chat")
    for stream in (False, True):
        answer = model.prompt("the cat", stream=stream, temperature=0, max_tokens=8)
        assert answer.text() == wanted
    talk = model.conversation()
    assert talk.prompt("the cat", temperature=0, max_tokens=8).text() == wanted
    assert talk.prompt("a dog", temperature=0, max_tokens=8).text() is not None
    wanted = server.ask(model="base", prompt="the cat", max_tokens=8, temperature=0)["text"]
    assert llm.get_model("base").prompt("the cat", temperature=0, max_tokens=8).text() == wanted
