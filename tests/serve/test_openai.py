"""The server as clients meet it: OpenAI's own client over a socket, and what comes over one that
should not.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest
import torch

from tests.conftest import SENTENCES, TINY, hear_ctrl_c, shake

reason = "needs the server's packages: pip install 'rung[serve]'"
fastapi = pytest.importorskip("fastapi", reason=reason)
uvicorn = pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from typer.testing import CliRunner  # noqa: E402

from rung import runs  # noqa: E402
from rung.chat.conversations import read_conversation  # noqa: E402
from rung.chat.dpo import read_preferences  # noqa: E402
from rung.cli.main import app  # noqa: E402
from rung.data.tokenizer import encode_documents  # noqa: E402
from rung.data.tokenizer_training import build_tokenizer  # noqa: E402
from rung.errors import CorpusError, RecipeError, RunError  # noqa: E402
from rung.evaluation.surprisal import score_text  # noqa: E402
from rung.generation.generate import generate  # noqa: E402
from rung.generation.sampling import Sampling  # noqa: E402
from rung.models import RUNGS, make_config  # noqa: E402
from rung.serve import engine as engines  # noqa: E402
from rung.serve.access import (  # noqa: E402
    find_allowed_hosts,
    parse_api_key,
    parse_origin,
)
from rung.serve.api_errors import ApiError  # noqa: E402
from rung.serve.app import build_app, open_port  # noqa: E402
from rung.serve.limits import Limits  # noqa: E402
from rung.serve.registry import ServedModel, fingerprint_model, load_served_models, shorten_paths  # noqa: E402
from rung.serve.schemas import ChatCompletionRequest, CompletionRequest  # noqa: E402

ROOT = Path(__file__).parents[2]
NAN = b'{"model": "gpt2", "temperature": NaN}'
QUESTION = {"role": "user", "content": "a"}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


class Listening:
    """A server of these runs in a thread of its own."""

    def __init__(self, served, **limits):
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
        headers = body.pop("headers", {})
        return httpx.post(self.url + path, json=body, headers=headers, timeout=300)

    def measure(self, name):
        """The sum of what /metrics says of it."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def wait_until(holds, seconds=300):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served(make_tiny, tokenizer):
    """Every rung; the one called chat has a template."""
    made = {name: ServedModel(name, shake(make_tiny(name)), tokenizer, {}) for name in TINY}
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = TEMPLATE
    return made | {"chat": ServedModel("chat", made["llama3"].model, chatting, {})}


@pytest.fixture
def endless(served, monkeypatch):
    """A model that never comes to an end by itself."""
    monkeypatch.setattr(
        engines, "sample_each", lambda logits, settings, streams: [65] * len(settings)
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


@pytest.mark.parametrize("name", ["ngram", "rnn", "gpt2", "llama3"])
def test_logprobs_are_those_of_the_ruler(name, client, served):
    run, text = (
        served[name],
        f"{SENTENCES[2]} <|end_of_text|> a",
    )  # a prompt is text, the name of the end in it too
    wanted = -sum(piece.bits for piece in score_text(run.model, run.tokenizer, text)[:-1])
    echoed = client.completions.create(
        model=name, prompt=text, max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    assert echoed.text == text == "".join(echoed.logprobs.tokens)
    assert sum(echoed.logprobs.token_logprobs) / torch.tensor(2.0).log().item() == pytest.approx(
        wanted, rel=1e-4
    )
    made = client.completions.create(
        model=name, prompt="the", max_tokens=6, seed=1, logprobs=3, stop="\x00"
    )
    ids = [0, *run.tokenizer("the", add_special_tokens=False).input_ids]
    with torch.inference_mode():
        logs = run.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    found = made.choices[0].logprobs
    assert max(found.top_logprobs[0].values()) == pytest.approx(logs.max().item(), abs=1e-4)
    assert any(found.token_logprobs[0] == pytest.approx(log, abs=1e-4) for log in logs.tolist())
    assert len(found.tokens) == len(found.token_logprobs) == made.usage.completion_tokens


def test_tokens_join_to_the_text_and_say_where_they_stand(client, tokenizer):
    text = "naïve 😀 café"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text), "characters of many tokens"
    ends = [
        len("".join(tokenizer.convert_ids_to_tokens(ids[:n]))) for n in range(len(ids))
    ]  # a symbol is a byte
    wanted = [len(text.encode()[:end].decode(errors="ignore")) for end in ends]
    for prompt, first in ((text, 0), ([0, *ids], 1)):
        asked = {"model": "gpt2", "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 5}
        echoed = client.completions.create(**asked).choices[0]
        assert echoed.text == text == "".join(echoed.logprobs.tokens)
        assert echoed.logprobs.text_offset[first:] == wanted
    more = client.completions.create(
        **{**asked, "prompt": text, "max_tokens": 9, "seed": 2}
    ).choices[0]
    assert "".join(more.logprobs.tokens) == more.text
    places = [*more.logprobs.text_offset, len(more.text)]
    assert [more.text[a:b] for a, b in itertools.pairwise(places)] == more.logprobs.tokens


@pytest.mark.parametrize("kind", ["word", "whitespace", "char"])
def test_tokens_join_where_the_tokenizer_loses_something(kind):
    """White space that it drops is in the token before it, and what comes first in the first."""
    words = build_tokenizer(kind, SENTENCES)
    documents = list(encode_documents(SENTENCES, words))
    starts = numpy.cumsum([0] + [len(row) for row in documents[:-1]])
    model = (
        RUNGS["bigram"]
        .model_class.fit(make_config("bigram", words, {}), numpy.concatenate(documents), starts)
        .eval()
    )
    with Listening({"m": ServedModel("m", model, words, {})}) as server:
        for prompt in ("  the cat  Zebra sat ", "é 🙂", "", "   "):
            made = server.post(
                model="m", prompt=prompt, max_tokens=8, echo=True, logprobs=2, seed=1
            )
            text, logprobs = (
                made.json()["choices"][0]["text"],
                made.json()["choices"][0]["logprobs"],
            )
            first = logprobs["text_offset"][0] if logprobs["text_offset"] else len(text)
            assert text.startswith(prompt) and "".join(logprobs["tokens"]) == text[first:]
            for place, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
                assert text[place : place + len(token)] == token
            assert first == 0 or prompt.isspace(), "of white space alone there may be no token"


def say(ids, monkeypatch):
    """Have every model say these tokens."""
    monkeypatch.setattr(
        engines,
        "sample_each",
        lambda logits, settings, streams: [ids[d.take_next()] for d in streams],
    )
    monkeypatch.setattr("rung.serve.sequences.RandomStream", Counting)
    monkeypatch.setattr(engines, "NOTIFY_SECONDS", 0.0)


@pytest.mark.parametrize("stop", [None, "t", " on ", "é", "🙂 m"])
def test_of_the_end_and_a_stop_string_there_are_no_logprobs(stop, served, tokenizer, monkeypatch):
    said = "the cat sat on é 🙂 mat"
    wanted = said if stop is None else said[: said.index(stop)]
    say([*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id], monkeypatch)
    asked = {"max_tokens": 50, "stop": stop}
    with Listening({"chat": served["chat"]}) as server:
        whole = server.post(model="chat", prompt="the", logprobs=2, **asked).json()["choices"][0]
        assert whole["text"] == wanted == "".join(whole["logprobs"]["tokens"])
        lines = server.post(
            model="chat", prompt="the", logprobs=2, stream=True, **asked
        ).text.split("\n\n")
        parts = [
            json.loads(line[6:])["choices"][0]["logprobs"]
            for line in lines
            if line.startswith("data: {")
        ]
        for name, joined in whole["logprobs"].items():
            assert [value for part in parts for value in part[name]] == joined
        chat = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2}
        tokens = server.post("/v1/chat/completions", model="chat", **chat, **asked).json()[
            "choices"
        ][0]["logprobs"]
    assert b"".join(bytes(token["bytes"]) for token in tokens["content"]).decode() == wanted
    assert all(len(token["top_logprobs"]) == 2 for token in tokens["content"])


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


class Counting:
    """0, 1, 2, ..."""

    def __init__(self, seed):
        self.at = -1

    def take_next(self):
        self.at += 1
        return self.at


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


def test_a_key_may_be_sent_in_any_case_and_never_be_empty(served):
    with Listening({"gpt2": served["gpt2"]}, api_key="secret") as server:
        for given, status in (
            ("bearer secret", 200),
            ("BEARER  secret", 200),
            ("Basic secret", 401),
            ("secret", 401),
        ):
            answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": given})
            assert answer.status_code == status
    assert parse_api_key(" secret\n") == "secret" and parse_api_key(None) is None
    for wrong in ("", " \n", "a\nb"):
        with pytest.raises(RecipeError, match="the API key"):
            parse_api_key(wrong)
        with pytest.raises(RecipeError, match="key"):
            Limits(api_key=wrong)
    for options, environment in ((["--api-key", ""], {}), ([], {"RUNG_API_KEY": ""})):
        made = CliRunner().invoke(app, ["serve", "nowhere", *options], env=environment)
        assert made.exit_code == 2 and "the API key is empty" in made.stderr


def test_pages_that_may_ask_are_named_as_browsers_name_them(served):
    assert parse_origin("https://Example.org:443/") == "https://example.org"
    assert parse_origin("http://[::1]:3000/") == "http://[::1]:3000" and parse_origin("*") == "*"
    for wrong in ("example.org", "https://", "https://a/b", "https://a:x", ""):
        with pytest.raises(RecipeError, match="is no origin"):
            parse_origin(wrong)
    with Listening({"gpt2": served["gpt2"]}, origins=("*",)) as server:
        answer = server.post(model="gpt2", prompt="a", headers={"Origin": "http://any.example"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"


def test_hosts_go_by_what_the_address_is():
    for host in (
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "LOCALHOST",
        "::1",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
    ):
        assert {"localhost", "127.0.0.1", "::1"} <= set(find_allowed_hosts(host)), host
    assert "127.0.0.2" in find_allowed_hosts("127.0.0.2")
    assert (
        find_allowed_hosts("0.0.0.0")
        == find_allowed_hosts("::")
        == find_allowed_hosts("nowhere.invalid")
        == find_allowed_hosts("")
        == ()
    )
    assert (
        "my.lan" in find_allowed_hosts("127.0.0.1", ["My.LAN:8000"])
        and find_allowed_hosts("127.0.0.1", ["*"]) == ()
    )
    assert set(find_allowed_hosts("0.0.0.0", ["my.lan"])) == {
        "localhost",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "my.lan",
    }


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


def test_an_address_of_version_six_stands_in_brackets(monkeypatch, capsys):
    from rung.cli import serve
    from rung.cli.main import app

    monkeypatch.setattr(
        "rung.serve.registry.load_served_models",
        lambda runs: {"gpt2": ServedModel("gpt2", None, None, {})},
    )
    monkeypatch.setattr(
        "rung.serve.app.run_server", lambda served, limits, listener: listener.close()
    )
    monkeypatch.setattr("rung.serve.worker.reserve_core", lambda: None)
    try:
        open_port("::1", 0).close()
    except RunError:
        pytest.skip("this machine has no address ::1")
    assert CliRunner().invoke(app, ["serve", "gpt2", "--host", "::1", "--port", "0"]).exit_code == 0
    serve.show_address(["a"], "http://[::1]:8000", False, "")
    assert "Open    http://[::1]:8000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "gpt2", "prompt": 3}, "prompt"),
        ({"model": "gpt2", "prompt": []}, "prompt"),
        ({"model": "gpt2", "prompt": [100_000]}, "prompt"),
        ({"model": "gpt2", "prompt": [[-1]]}, "prompt"),
        ({"model": "gpt2", "temperature": "0.7"}, "temperature"),
        ({"model": "gpt2", "temperature": 3}, "temperature"),
        ({"model": "gpt2", "top_p": -0.1}, "top_p"),
        ({"model": "gpt2", "max_tokens": 0}, "max_tokens"),
        ({"model": "gpt2", "max_tokens": 30_000}, "max_tokens"),
        ({"model": "gpt2", "n": 100}, "n"),
        ({"model": "gpt2", "seed": 2**63}, "seed"),
        ({"model": "gpt2", "stop": ["a"] * 9}, "stop"),
        ({"model": "gpt2", "stop": ""}, "stop"),
        ({"model": "gpt2", "stop": [""]}, "stop"),
        ({"model": "gpt2", "frequency_penalty": 0.5}, "frequency_penalty"),
        ({"model": "gpt2", "best_of": 3}, "best_of"),
        ({"model": "gpt2", "min_p": 0.5}, "min_p"),
        ({"model": "gpt2", "repetition_penalty": 5.0}, "repetition_penalty"),
        ({"model": "gpt2", "stop_token_ids": [201]}, "stop_token_ids"),
        ({"model": "gpt2", "guided_json": {}}, "guided_json"),
        ({"model": "gpt2", "temprature": 0}, "temprature"),
        ({"model": "gpt2", "n": 1.5}, "n"),
        ({"model": "gpt2", "stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"model": "gpt2", "stream": True, "stream_options": {"include_usge": True}},
            "stream_options",
        ),
        ({}, "model"),
    ],
)
def test_a_bad_body_is_400_and_says_why(body, param, server):
    answer = server.post(**body)
    assert answer.status_code == 400
    assert (
        answer.json()["error"]["param"] == param
        and answer.json()["error"]["type"] == "invalid_request_error"
    )


def test_what_would_change_an_answer_is_refused_by_name(server):
    asked = {"model": "chat", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for name, value in {
        "function_call": {"name": "f"},
        "reasoning_effort": "high",
        "verbosity": "low",
        "web_search_options": {},
        "chat_template_kwargs": {"thinking": True},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "json_object"},
    }.items():
        error = server.post("/v1/chat/completions", **asked, **{name: value}).json()["error"]
        assert error["message"] == f"{name} is not supported here: leave it out"
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    typo = server.post("/v1/chat/completions", **asked, temprature=0).json()["error"]
    assert typo["message"] == "unknown parameter 'temprature': did you mean 'temperature'?"
    assert typo["code"] == "unknown_parameter"
    alone = server.post("/v1/chat/completions", **asked, top_logprobs=2)
    assert (
        alone.status_code == 400
        and "only allowed when logprobs is true" in alone.json()["error"]["message"]
    )
    harmless = {
        "metadata": {"a": "b"},
        "user": "me",
        "store": False,
        "service_tier": "auto",
        "n": 1.0,
    }
    neutral = {
        "frequency_penalty": 0.0,
        "tool_choice": "auto",
        "logit_bias": None,
        "tools": None,
        "max_tokens": 1.0,
    }
    assert (
        server.post("/v1/chat/completions", **{**asked, **harmless, **neutral}).status_code == 200
    )


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "image_url parts are not",
        ),
        ({"role": "tool", "content": "4", "tool_call_id": "1"}, "the role 'tool' is not supported"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            "tool_calls is not supported",
        ),
        ({"role": "assistant", "content": None}, "content is null"),
    ],
)
def test_messages_are_refused_by_what_is_in_them(message, named, server):
    messages = [{"role": "user", "content": "2 + 2?"}, message]
    error = server.post("/v1/chat/completions", model="chat", messages=messages).json()["error"]
    assert error["message"].startswith("messages[1]: ") and named in error["message"]
    assert (error["param"], error["code"]) == ("messages", "unsupported_value")
    wrong = server.post(
        "/v1/chat/completions", model="chat", messages=[{"role": "user", "content": 3}]
    ).json()["error"]
    assert wrong["message"].startswith(
        'messages[0]: {"role": "user", "content": 3} is no message: it needs a `role`'
    )


READ = [  # messages, and what each says; None where it is refused
    ({"role": "user", "content": " a cat? \n"}, " a cat? \n"),
    ({"role": "user", "content": ""}, ""),
    ({"role": "system", "content": "be a cat", "name": "x", "tool_calls": None}, "be a cat"),
    ({"role": "developer", "content": "be a cat"}, "be a cat"),
    ({"role": "assistant", "content": "yes", "tool_calls": [], "refusal": None}, "yes"),
    (
        {
            "role": "user",
            "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}],
        },
        " a b",
    ),
    ({"from": "human", "value": "a cat?"}, "a cat?"),
    ({"role": "user", "content": None}, None),
    ({"role": "user"}, None),
    ({"role": "user", "content": []}, None),
    ({"role": "user", "content": 3}, None),
    ({"role": "user", "content": {"type": "text", "text": "a"}}, None),
    ({"role": "user", "content": ["a"]}, None),
    ({"role": "user", "content": [{"type": "text", "text": 3}]}, None),
    ({"role": "user", "content": [{"text": "a"}]}, None),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, None),
    ({"role": "user", "content": "half \ud83d"}, None),
    ({"role": "assistant", "content": "let me see", "tool_calls": [{"id": "1"}]}, None),
    ({"role": "assistant", "content": "let me see", "function_call": {"name": "f"}}, None),
    ({"role": "tool", "content": "4", "tool_call_id": "1"}, None),
    ({"role": "function", "content": "4", "name": "f"}, None),
    ({"role": "bard of old", "content": "a"}, None),
    ({"role": ["user"], "content": "a"}, None),
    ({"role": None, "content": "a"}, None),
    ({"content": "a"}, None),
    ({}, None),
    ("a cat?", None),
]


@pytest.mark.parametrize(("message", "says"), READ, ids=str)
def test_tuning_preference_and_the_server_read_the_same_messages(message, says, tmp_path):
    pairs = [
        {"prompt": [message], "chosen": answer, "rejected": "no"} for answer in ("good", "well")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    answered = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    readers = (
        lambda: read_conversation({"messages": [message, *answered]}, "a file")[0],
        lambda: read_preferences(tmp_path / "pairs.jsonl")[0].prompt[0],
        lambda: ChatCompletionRequest.model_validate(
            {"model": "m", "messages": [message]}
        ).messages[0],
    )
    for read in readers:
        if says is None:
            with pytest.raises((CorpusError, ApiError)):
                read()
        else:
            assert read()["content"] == says and read() == readers[0]()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_empty_stop_is_refused(path, server):
    asked = {"model": "chat", "max_tokens": 1} | (
        {"messages": [QUESTION]} if "chat" in path else {"prompt": "a"}
    )
    for stop, where in (("", "stop"), ([""], "stop[0]"), (["a", ""], "stop[1]")):
        answer = server.post(path, **asked, stop=stop)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "stop"
        assert answer.json()["error"]["message"].startswith(
            f"{where}: String should have at least 1 character"
        )
    for stop in (None, [], "x"):
        assert server.post(path, **asked, stop=stop).status_code == 200


# What is not done here of OpenAI's, vLLM's and other servers' keys, each with a value that asks for
# it.
PENALTIES = (
    "frequency_penalty presence_penalty repetition_penalty length_penalty penalty_alpha "
    "dry_multiplier"
)
CUTS = "min_p typical_p top_a tfs epsilon_cutoff eta_cutoff"
COUNTS = "min_tokens max_new_tokens best_of num_beams mirostat no_repeat_ngram_size prompt_logprobs"
COUNTS += " truncate_prompt_tokens thinking_token_budget"
SWITCHES = (
    "ignore_eos include_stop_str_in_output use_beam_search do_sample early_stopping "
    "continue_final_message"
)
KEPT = "skip_special_tokens spaces_between_special_tokens add_generation_prompt"
LISTS = (
    "stop_token_ids allowed_token_ids bad_words bad_words_ids logits_processors guided_choice "
    "tools functions"
)
LISTS += " modalities documents"
OBJECTS = "guided_json structured_outputs vllm_xargs logit_bias response_format audio prediction"
GRAMMARS = "guided_regex guided_grammar grammar regex ebnf suffix chat_template"
GROUPS = (
    (PENALTIES, 1.5),
    (CUTS, 0.5),
    (COUNTS, 4),
    (SWITCHES, True),
    (KEPT, False),
    (LISTS, [5]),
    (GRAMMARS, "a"),
)
SAMPLING = {
    name: value for names, value in (*GROUPS, (OBJECTS, {"a": 1})) for name in names.split()
}


@pytest.mark.parametrize("name", SAMPLING)
def test_a_sampling_key_that_is_not_done_is_refused_by_name(name):
    for kind, asked in (
        (CompletionRequest, {"prompt": "a"}),
        (ChatCompletionRequest, {"messages": [QUESTION]}),
    ):
        with pytest.raises(ApiError) as refused:
            kind.model_validate({"model": "m", **asked, name: SAMPLING[name]}).check_keys()
        assert (refused.value.status_code, refused.value.param) == (400, name)
        assert name in refused.value.detail


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


def test_half_a_character_is_named(server):
    for path, text in (
        ("/v1/completions", b'"prompt": "a \\ud83d b"'),
        ("/v1/completions", b'"prompt": "a", "stop": ["\\udc00"]'),
        ("/v1/chat/completions", b'"messages": [{"role": "user", "content": "a \\ud83d b"}]'),
    ):
        content, headers = b'{"model": "chat", ' + text + b"}", {"Content-Type": "application/json"}
        answer = httpx.post(server.url + path, content=content, headers=headers)
        assert answer.status_code == 400 and "half a character" in answer.json()["error"]["message"]


def test_a_body_that_is_not_said_to_be_json(server):
    content = b'{"model": "gpt2", "prompt": "a"}'
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
        assert answer.status_code == 400
        assert "send it as Content-Type: application/json" in answer.json()["error"]["message"]


def test_usage_and_fingerprint_are_those_of_openai(client, server, served, make_tiny, tokenizer):
    made = client.completions.create(model="gpt2", prompt="a", max_tokens=3)
    chat = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "a"}], max_tokens=3
    )
    assert made.usage.prompt_tokens_details.cached_tokens == 0
    assert chat.usage.completion_tokens_details.reasoning_tokens == 0
    assert (
        made.system_fingerprint
        == client.completions.create(model="gpt2", prompt="b").system_fingerprint
    )
    assert (
        made.system_fingerprint.startswith("fp_")
        and made.system_fingerprint != chat.system_fingerprint
    )
    assert (
        fingerprint_model(ServedModel("other name", served["gpt2"].model, tokenizer, {}))
        == made.system_fingerprint
    )
    assert (
        fingerprint_model(ServedModel("gpt2", make_tiny("gpt2"), tokenizer, {}))
        != made.system_fingerprint
    ), "other weights"


def test_top_p_of_zero_takes_the_likeliest(server):
    asked = {"model": "llama3", "prompt": "the", "max_tokens": 8}
    greedy = server.post(**asked, temperature=0).json()["choices"]
    assert server.post(**asked, temperature=2, top_p=0).json()["choices"] == greedy


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


def test_runs_are_named_by_their_folders(make_tiny, tokenizer, tmp_path):
    for place in ("one/gpt2", "two/gpt2", "one/ngram"):
        folder = runs.make_folder(tmp_path / place)
        runs.save_model(folder, make_tiny(Path(place).name), tokenizer)
        runs.write_record(
            folder, {"rung": Path(place).name} | ({"scores": {}} if place != "one/ngram" else {})
        )
    assert list(load_served_models([str(tmp_path)])) == ["one/gpt2", "two/gpt2"]
    assert list(load_served_models([str(tmp_path / "one" / "ngram"), str(tmp_path / "one")])) == [
        "ngram",
        "gpt2",
    ]
    (tmp_path / "empty").mkdir()
    for nothing, message in (("empty", "holds no finished run"), ("missing", "no run at")):
        with pytest.raises(RunError, match=message):
            load_served_models([str(tmp_path / nothing)])
    assert shorten_paths([("a", "x"), ("b", "x"), ("y",)]) == ["a/x", "b/x", "y"]


def test_limits_are_checked():
    for wrong in ({"max_batch": 0}, {"max_queue": -1}, {"seconds": 0.0}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))} is "):
            Limits(**wrong)


def test_where_it_cannot_listen_it_says_so():
    with open_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "nowhere.invalid", "a" * 70):
            with pytest.raises(RunError, match=f"cannot listen at {host}, port {port} .*: choose"):
                open_port(host, port)


def test_the_command_serves_until_ctrl_c(make_tiny, tokenizer, tmp_path):
    runs.save_model(runs.make_folder(tmp_path / "ngram"), make_tiny("ngram"), tokenizer)
    command = [sys.executable, "-m", "rung", "serve", str(tmp_path / "ngram"), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    try:
        lines = [process.stderr.readline() for _ in range(4)]
        assert lines[0] == "Serving ngram\n" and "curl" in lines[2]
        address = lines[1].split()[1]
        answer = httpx.post(
            f"{address}/v1/completions",
            json={"model": "ngram", "prompt": "the", "temperature": 0},
            timeout=300,
        )
        assert answer.json()["usage"]["completion_tokens"] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    finally:
        process.kill()
        process.wait()


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("rung.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    made = CliRunner().invoke(app, ["serve", "runs"])
    wanted = "rung: serving needs fastapi, which is not installed: pip install 'rung[serve]'\n"
    assert (made.exit_code, made.stderr) == (2, wanted)


def test_a_completion_ends_where_the_model_says(served):
    """At each of the ends in `generation_config`, as `rung generate` and Hugging Face have it."""
    import copy

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
