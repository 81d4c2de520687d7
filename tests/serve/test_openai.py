"""OpenAI's addresses as its own client meets them, over a socket."""

import asyncio
import copy

import pytest

from tests.conftest import TINY

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from rung.generation.generate import generate  # noqa: E402
from rung.generation.sampling import Sampling  # noqa: E402
from rung.serve.registry import ServedModel  # noqa: E402
from tests.serve.conftest import Listening  # noqa: E402


@pytest.mark.parametrize("name", list(TINY))
def test_what_a_client_gets_is_what_generate_writes(name, client, served):
    run = served[name]
    for settings_ in ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9}):
        wanted = generate(
            run.model,
            run.tokenizer,
            "the cat",
            Sampling(max_new_tokens=20, seed=5, **settings_, stop=("zz",)),
        )
        asked = {
            "model": name,
            "prompt": "the cat",
            "max_tokens": 20,
            "seed": 5,
            "stop": "zz",
            **settings_,
        }
        whole = client.completions.create(**asked)
        assert whole.choices[0].text == wanted.text
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
            1 + len(run.tokenizer("the cat", add_special_tokens=False).input_ids),
            wanted.tokens,
        )
        events = list(
            client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        )
        assert "".join(event.choices[0].text for event in events[:-1]) == wanted.text
        assert events[-1].usage == whole.usage
        assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        ids = [0, *run.tokenizer("the cat", add_special_tokens=False).input_ids]
        assert client.completions.create(**{**asked, "prompt": ids}).choices[0].text == wanted.text


def test_models_are_listed(client, server, served):
    assert [model.id for model in client.models.list()] == list(served)
    assert client.models.retrieve("gpt2").owned_by == "rung"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/v1/models/../../etc/passwd").status_code == 404
    assert "/v1/chat/completions" in httpx.get(f"{server.url}/openapi.json").json()["paths"]


def test_several_prompts_and_several_answers(client):
    asked = {"model": "llama3", "max_tokens": 8, "seed": 3}
    made = client.completions.create(prompt=["the cat", "a dog"], n=3, **asked)
    texts = [choice.text for choice in made.choices]
    assert [choice.index for choice in made.choices] == list(range(6)) and len(set(texts)) == 6
    again = client.completions.create(prompt=["the cat", "a dog"], n=3, stream=True, **asked)
    streamed = dict.fromkeys(range(6), "")
    for event in again:
        streamed[event.choices[0].index] += event.choices[0].text
    assert list(streamed.values()) == texts
    assert client.completions.create(prompt="the cat", **asked).choices[0].text == texts[0]
    other = client.completions.create(prompt="the cat", **(asked | {"seed": None})).choices[0].text
    assert other not in texts[:1]


def test_a_chat(client, served):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat"}]
    asked = {
        "model": "chat",
        "messages": messages,
        "max_completion_tokens": 9,
        "temperature": 0,
        "logprobs": True,
    }
    made = client.chat.completions.create(**asked, top_logprobs=2)
    (choice,) = made.choices
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert len(choice.logprobs.content) == made.usage.completion_tokens
    for token in choice.logprobs.content:
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # it is greedy
    events = list(client.chat.completions.create(**asked, stream=True))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(e.choices[0].delta.content or "" for e in events) == choice.message.content
    parts = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}],
        }
    ]
    same = client.chat.completions.create(**{**asked, "messages": [*parts, messages[1]]})
    assert same.choices[0].message == choice.message


def test_a_model_without_a_template_says_how_to_get_one(server):
    answer = server.post(
        "/v1/chat/completions", model="gpt2", messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.status_code == 400 and "`rung tune RUN`" in answer.json()["error"]["message"]


def test_clients_may_be_asynchronous(server):
    openai = pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")

    async def ask():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="any", max_retries=0
        ) as client:
            stream = await client.completions.create(
                model="gpt2", prompt="a", max_tokens=5, stream=True
            )
            return [event async for event in stream]

    assert asyncio.run(ask())[-1].choices[0].finish_reason


def test_a_prompt_longer_than_the_window_is_refused(server, served, tokenizer):
    window, words = served["gpt2"].model.context_length, "the cat sat on the mat " * 30
    ids = [0, *tokenizer(words, add_special_tokens=False).input_ids]
    asked = {"model": "gpt2", "max_tokens": 4, "temperature": 0}
    for prompt in (words, ids, ids[: window + 1]):
        answer = server.post(**asked, prompt=prompt)
        assert (
            answer.status_code == 400
            and answer.json()["error"]["code"] == "context_length_exceeded"
        )
        assert f"maximum context length is {window} tokens" in answer.json()["error"]["message"]
    assert server.post(**asked, prompt=ids[:window]).json()["usage"]["prompt_tokens"] == window
    scored = server.post(**{**asked, "max_tokens": 0}, prompt=words, echo=True, logprobs=0).json()[
        "choices"
    ][0]
    assert len(scored["logprobs"]["tokens"]) == len(ids) - 1, "a text is scored in windows"
    chat = server.post(
        "/v1/chat/completions", model="chat", messages=[{"role": "user", "content": words}]
    )
    assert (
        chat.status_code == 400 and "maximum context length is" in chat.json()["error"]["message"]
    )


def test_top_p_of_zero_takes_the_likeliest(server):
    asked = {"model": "llama3", "prompt": "the", "max_tokens": 8}
    greedy = server.post(**asked, temperature=0).json()["choices"]
    assert server.post(**asked, temperature=2, top_p=0).json()["choices"] == greedy


def test_a_completion_ends_where_the_model_says(served):
    """At each of the ends in `generation_config`, as `rung generate` and Hugging Face have it."""

    model, tokenizer = copy.deepcopy(served["llama3"].model), served["llama3"].tokenizer
    body = {"model": "llama3", "prompt": "the cat", "temperature": 0, "max_tokens": 12}
    with Listening({"llama3": ServedModel("llama3", model, tokenizer, {})}) as listening:
        plain = listening.post(**body).json()
        ids = tokenizer(plain["choices"][0]["text"], add_special_tokens=False).input_ids
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, ids[-1]]
        ended = listening.post(**body).json()
    wanted = generate(model, tokenizer, "the cat", Sampling(temperature=0, max_new_tokens=12))
    assert [made["choices"][0]["finish_reason"] for made in (plain, ended)] == ["length", "stop"]
    assert (
        ended["usage"]["completion_tokens"] == wanted.tokens <= plain["usage"]["completion_tokens"]
    )
    assert plain["choices"][0]["text"].startswith(ended["choices"][0]["text"])
