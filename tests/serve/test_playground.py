"""What the page asks of the models: every rung answers, in bounds, and every mistake is told in
OpenAI's form.
"""

import json
import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rung.data.tokenizer import encode_ordinary
from rung.evaluation.attention import attention_shape
from rung.evaluation.surprisal import score_text
from rung.generation import detokenize
from rung.generation.detokenize import token_to_text
from rung.generation.sampling import Sampling, sample_tokens
from rung.models import count_parameters
from tests.conftest import SENTENCES, TINY, examples

pytest.importorskip("fastapi", reason="the playground needs the extra: pip install 'rung[serve]'")
testclient = pytest.importorskip("fastapi.testclient", reason="FastAPI's test client needs httpx")

import httpx  # noqa: E402

from rung.evaluation.metrics import RENORMALIZED  # noqa: E402
from rung.serve import openai, playground  # noqa: E402
from rung.serve.app import build_app  # noqa: E402
from rung.serve.limits import Limits  # noqa: E402
from rung.serve.playground import MAX_ATTENTION_TOKENS, MAX_TEXT, describe_models  # noqa: E402
from rung.serve.registry import ServedModel  # noqa: E402
from tests.serve.conftest import Listening, wait_until  # noqa: E402

SCORE = {"bits_per_byte": 1.9, "low": 1.8, "high": 2.0}
RECORD = {
    "scores": {"test": SCORE},
    "corpus": {"name": "sentences"},
    "marks": {"zlib": 2.5},
    "prompt": "the cat",
}
TEXT = "the cat sat on é \U0001f642 mat"


@pytest.fixture(scope="module")
def served(make_tiny, tokenizer):
    return {
        name: ServedModel(name, make_tiny(name), tokenizer, {**RECORD, "rung": name})
        for name in TINY
    }


@pytest.fixture(scope="module")
def client(served):
    with testclient.TestClient(build_app(served)) as client:
        yield client


def ask(client, what, **question):
    answer = client.post(f"/api/{what}", json=question)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_run_is_described(client, served):
    rungs = {run["name"]: run for run in client.get("/api/rungs").json()["rungs"]}
    assert list(rungs) == list(served)
    for name, run in rungs.items():
        model = served[name].model
        assert (
            run["rung"] == name and run["corpus"] == "sentences" and run["marks"] == {"zlib": 2.5}
        )
        assert run["parameters"] == count_parameters(model)
        assert (run["layers"], run["heads"]) == attention_shape(model)
        assert (
            run["counts"] == (name in ("bigram", "ngram", "infini-gram")) and run["chat"] is False
        )
        assert (run["bits_per_byte"], run["low"], run["high"]) == (1.9, 1.8, 2.0)


@pytest.mark.parametrize("name", TINY)
def test_the_next_token_is_told_as_it_would_be_drawn(name, client, served, tokenizer):
    sampling = {"temperature": 0.6, "top_k": 7, "top_p": 0.8}
    answer = ask(client, "next", model=name, text="the cat sat", count=10, **sampling)
    assert "".join(answer["pieces"]) == answer["text"] == "the cat sat"
    for kind in ("probability", "drawn"):
        assert sum(token[kind] for token in answer["tokens"]) + answer["rest"][
            kind
        ] == pytest.approx(1, abs=1e-5)
    assert answer["rest"]["tokens"] == len(tokenizer) - 10
    ids = torch.tensor([[tokenizer.bos_token_id, *answer["ids"]]])
    logits = served[name].model(ids).logits[:, -1].detach()
    shares = logits.softmax(-1)[0]
    for token in answer["tokens"]:
        assert token["probability"] == pytest.approx(shares[token["id"]].item(), abs=1e-6)
        assert token["text"] == token_to_text(tokenizer, token["id"])
        assert token["end"] == (token["id"] == tokenizer.eos_token_id)
    drawn = (
        sample_tokens(
            logits.repeat(4000, 1), Sampling(**sampling), torch.Generator().manual_seed(0)
        ).bincount()
        / 4000
    )
    kept = {token["id"]: token["drawn"] for token in answer["tokens"] if token["drawn"]}
    assert len(kept) == answer["kept"] and set(drawn.nonzero()[:, 0].tolist()) <= set(kept)
    assert all(abs(drawn[id] - share) < 0.05 for id, share in kept.items() if id < len(drawn))
    assert answer["entropy"] == pytest.approx(
        torch.special.entr(shares).sum().item() / math.log(2), abs=1e-4
    )
    assert answer["drawn_entropy"] <= math.log2(7)


def test_the_name_of_the_end_is_text_wherever_it_is_typed(client, tokenizer):
    text = f"the cat {tokenizer.eos_token} sat"
    ids = encode_ordinary(tokenizer, [text])[0].ids
    assert tokenizer.eos_token_id not in ids
    asked = {"model": "llama3", "text": text}
    assert ask(client, "next", **asked)["ids"] == ids
    assert ask(client, "attention", **asked)["tokens"][1:] == [
        token_to_text(tokenizer, id) for id in ids
    ]
    assert "".join(piece["text"] for piece in ask(client, "surprisal", **asked)["pieces"]) == text
    body = {"model": "llama3", "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0}
    echoed = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["tokens"]
    assert "".join(echoed) == text and len(echoed) == len(ids)


def test_ids_go_on_where_text_would_be_cut_otherwise(client, tokenizer):
    first = ask(client, "next", model="ngram", text="the c")
    cut = [*first["ids"], *tokenizer("at", add_special_tokens=False).input_ids]
    answer = ask(client, "next", model="ngram", ids=cut)
    assert answer["ids"] == cut != ask(client, "next", model="ngram", text="the cat")["ids"]
    assert answer["text"] == "the cat"


@pytest.mark.parametrize(
    ("words", "is_cut"), [("the cat sat on the mat " * 60, True), ("cat", False)]
)
def test_a_long_text_is_read_from_its_end_where_the_window_ends(words, is_cut, client):
    whole = ask(client, "next", model="gpt2", text=words, count=5)
    assert (len(whole["ids"]) > TINY["gpt2"]["max_position_embeddings"]) == is_cut
    changed = ask(client, "next", model="gpt2", text="a dog" + words, count=5)
    assert (whole["tokens"] == changed["tokens"]) == is_cut


@pytest.mark.parametrize("temperature", [0, 1e-40])
def test_temperature_zero_leaves_one_token(temperature, client):
    answer = ask(client, "next", model="gpt2", text="the", temperature=temperature)
    assert answer["tokens"][0]["drawn"] == 1
    assert answer["kept"] == 1 and answer["drawn_entropy"] == 0


@pytest.mark.parametrize("name", TINY)
def test_surprisal_is_that_of_the_ruler(name, client, served, tokenizer):
    answer = ask(client, "surprisal", model=name, text=TEXT)
    wanted = score_text(served[name].model, tokenizer, TEXT)
    assert "".join(piece["text"] for piece in answer["pieces"]) == TEXT
    assert [piece["bits"] for piece in answer["pieces"]] == pytest.approx(
        [piece.bits for piece in wanted], abs=1e-4
    )
    assert [piece["order"] for piece in answer["pieces"]] == [piece.order for piece in wanted]
    assert (answer["pieces"][0]["order"] is not None) == (name in ("ngram", "infini-gram"))
    assert answer["bytes"] == len(TEXT.encode())
    assert answer["bits_per_byte"] == pytest.approx(answer["bits"] / answer["bytes"])


@pytest.mark.parametrize("name", TINY)
def test_attention_is_a_triangle_for_each_head(name, client, served, tokenizer):
    layers, heads = attention_shape(served[name].model)
    if not layers:
        answer = client.post("/api/attention", json={"model": name, "text": "the cat"})
        assert answer.status_code == 400 and "no attention" in answer.json()["error"]["message"]
        return
    answer = ask(client, "attention", model=name, text="the cat sat")
    assert "".join(answer["tokens"][1:]) == "the cat sat" and answer["left_out"] == 0
    weights, count = torch.tensor(answer["weights"]), len(answer["tokens"])
    assert weights.shape == (layers, heads, count, count)
    assert not weights.triu(1).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(layers, heads, count), atol=0.01, rtol=0)
    long = ask(client, "attention", model=name, text="the cat sat on the mat " * 40)
    assert (
        len(long["tokens"]) == min(MAX_ATTENTION_TOKENS, served[name].model.context_length)
        and long["left_out"] > 0
    )


def test_probability_zero_is_told_as_null(make_tiny, tokenizer):
    model = make_tiny("ngram", order=1, smoothing="witten-bell")
    model.score_tokens = lambda ids: (
        torch.full((len(ids),), -math.inf),
        torch.ones(len(ids), dtype=torch.long),
    )
    with testclient.TestClient(
        build_app({"none": ServedModel("none", model, tokenizer, {})})
    ) as client:
        answer = ask(client, "surprisal", model="none", text="cat")
        run = client.get("/api/rungs").json()["rungs"][0]
    assert answer["bits"] is None and answer["pieces"][0]["bits"] is None
    assert run["bits_per_byte"] is None and run["rung"] == "ngram" and run["prompt"] is None


def test_a_run_with_a_chat_template_says_so(make_tiny, tokenizer):
    import copy

    able = copy.deepcopy(tokenizer)
    able.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with testclient.TestClient(
        build_app({"chat": ServedModel("chat", make_tiny("gpt2"), able, {})})
    ) as client:
        assert client.get("/api/rungs").json()["rungs"][0]["chat"] is True


BAD = [
    ("next", {"model": "gpt2", "top_p": -0.5}, 400, "top_p"),
    ("next", {"model": "gpt2", "top_p": 1.5}, 400, "top_p"),
    ("next", {"model": "gpt2", "temperature": -1}, 400, "temperature"),
    ("next", {"model": "gpt2", "top_k": -1}, 400, "top_k"),
    ("next", {"model": "gpt2", "count": 0}, 400, "count"),
    ("next", {"model": "gpt2", "count": 10_000}, 400, "count"),
    ("next", {"model": "gpt2", "ids": [0, 10**9]}, 400, "1000000000"),
    ("next", {"model": "gpt2", "ids": [-1]}, 400, "-1"),
    ("next", {"model": "gpt2", "ids": [10**30]}, 400, "ids"),
    ("next", {"model": "gpt2", "ids": [1] * (MAX_TEXT + 1)}, 400, "ids"),
    ("next", {"model": "gpt2", "text": "x" * (MAX_TEXT + 1)}, 400, "text"),
    ("next", {"model": "gpt2", "tekst": "x"}, 400, "tekst"),
    ("next", {"model": "../gpt2"}, 404, "../gpt2"),
    ("next", {}, 400, "model"),
    ("next", [], 400, ""),
    ("surprisal", {"model": "gpt2"}, 400, "text"),
    ("surprisal", {"model": "gpt2", "text": ""}, 400, "text"),
    ("surprisal", {"model": "gpt2", "text": "x" * (MAX_TEXT + 1)}, 400, "text"),
    ("surprisal", {"model": "none", "text": "x"}, 404, "none"),
    ("attention", {"model": "gpt2", "text": 5}, 400, "text"),
    ("attention", {"model": "rnn", "text": "the cat"}, 400, "attention"),
]


@pytest.mark.parametrize(("what", "question", "status", "named"), BAD, ids=str)
def test_mistakes_are_told(what, question, status, named, client):
    answer = client.post(f"/api/{what}", json=question)
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]
    assert "detail" not in answer.json()


def test_a_body_that_is_no_json_is_a_mistake_too(client):
    for body in (b"", b"{", b"\xff\xfe", b'{"model": "gpt2", "temperature": NaN}', b"[" * 2000):
        answer = client.post(
            "/api/next", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_questions_are_admitted_as_requests_are(served, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(
        playground, "find_surprisal", lambda run, question: {"waited": release.wait()}
    )
    app, asked = (
        build_app(served, Limits(max_batch=1, max_queue=1)),
        {"model": "rnn", "text": "the cat sat"},
    )
    with testclient.TestClient(app) as client, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(client.post, "/api/surprisal", json=asked) for _ in range(6)]
        wait_until(lambda: sum(answer.done() for answer in answers) == 4)
        done = [answer.result() for answer in answers if answer.done()]
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in done} == {
            (429, "queue_full")
        }
        release.set()
        assert sorted(answer.result().status_code for answer in answers) == [
            200,
            200,
            429,
            429,
            429,
            429,
        ]


class Endless:
    """Work on tensors that does not end by itself."""

    def __init__(self):
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, *_):
        self.begun.set()
        try:
            while True:
                torch.ones(1)
        finally:
            self.ended.set()


def test_a_question_takes_no_longer_than_an_answer_may(served, monkeypatch):
    monkeypatch.setattr(playground, "find_next_token", work := Endless())
    with testclient.TestClient(build_app(served, Limits(seconds=0.2))) as client:
        answer = client.post("/api/next", json={"model": "rnn"})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        assert not work.begun.is_set() or work.ended.wait(
            300
        )  # on a busy machine it does not begin


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/api/next", {"text": "a"}, (playground, "find_next_token")),
        ("/api/surprisal", {"text": "a"}, (playground, "find_surprisal")),
        ("/api/attention", {"text": "a"}, (playground, "find_attention")),
        ("/v1/completions", {"prompt": "a"}, (openai, "read_prompts")),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}]},
            (openai, "read_messages"),
        ),
    ],
    ids=str,
)
def test_what_nobody_waits_for_is_given_up(path, body, where, served, monkeypatch):
    monkeypatch.setattr(*where, work := Endless())
    with Listening({"llama3": served["llama3"]}) as server:
        content = json.dumps({"model": "llama3", **body}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
            f"{len(content)}"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + content)
            assert work.begun.wait(300)
        assert work.ended.wait(300)
        wait_until(lambda: 'status="499"' in httpx.get(f"{server.url}/metrics").text)


def test_runs_that_could_not_train_are_named(served, make_tiny, tokenizer):
    """As the report and a climb decide it."""
    text = {"corpus": {"fingerprint": "f"}, "training": {"steps": 100}}

    def make(name, bits, **record):
        score = {"scores": {"test": {"bits_per_byte": bits, "bytes": 9}}}
        return ServedModel(
            name, served[name].model, tokenizer, {"rung": name, **text, **score, **record}
        )

    runs = [
        make("bigram", 2.5),
        make("ngram", 3.0),
        make("gpt2", 1.0, training={"steps": 5}),
        make("rnn", 2.6),
    ]
    runs += [make("llama3", 2.4), ServedModel("plain", served["swaps"].model, tokenizer, {})]
    doubts = {run["name"]: run["doubt"] for run in describe_models(runs)}
    assert doubts.pop("gpt2") == "5 training steps only: too few to have learned anything"
    assert doubts.pop("rnn") == "worse than counting pairs: trained for too short a time"
    assert set(doubts.values()) == {None}


def test_bits_that_are_no_distributions_are_marked(client, make_tiny, tokenizer):
    assert not any(run["renormalized"] for run in client.get("/api/rungs").json()["rungs"])
    assert ask(client, "surprisal", model="ngram", text="cat")["renormalized"] is False
    stupid = ServedModel("stupid", make_tiny("ngram", smoothing="stupid-backoff"), tokenizer, {})
    with testclient.TestClient(build_app({"stupid": stupid})) as client:
        assert client.get("/api/rungs").json()["rungs"][0]["renormalized"] is True
        assert ask(client, "surprisal", model="stupid", text="cat")["renormalized"] is True
        assert f"no distribution; {RENORMALIZED}" in client.get("/page/marks.js").text


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    text=st.text(max_size=60), name=st.sampled_from(["bigram", "ngram", "rnn-attention", "llama3"])
)
def test_any_text_has_an_answer(text, name, client, tokenizer):
    answer = ask(client, "next", model=name, text=text, count=3)
    assert len(answer["tokens"]) == 3
    if text:
        pieces = ask(client, "surprisal", model=name, text=text)["pieces"]
        assert "".join(piece["text"] for piece in pieces) == text


@pytest.mark.parametrize("kind", ["bpe", "word", "char", "word-split"])
def test_a_token_is_shown_as_text_whatever_the_tokenizer(kind):
    from rung.data.tokenizer_training import build_tokenizer

    tokenizer = build_tokenizer(kind, [*SENTENCES, TEXT] * 20, 300 if kind == "bpe" else None)
    shown = [token_to_text(tokenizer, id) for id in range(len(tokenizer))]
    assert all(shown) and "\ufffd" not in "".join(shown)
    assert len(set(shown)) == len(shown)


def test_the_page_and_its_parts_come_from_here_alone(client):
    page = client.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for name, kind in (("app.js", "javascript"), ("style.css", "text/css"), ("icon.svg", "svg")):
        part = client.get(f"/page/{name}")
        assert part.status_code == 200 and kind in part.headers["content-type"]
        assert part.headers["x-content-type-options"] == "nosniff"
    for name in ("nothing.js", "..%2fplayground.py", "%2e%2e/served.py", "../../../../etc/passwd"):
        assert client.get(f"/page/{name}").status_code == 404


def test_the_page_has_no_inline_code_and_names_no_other_place():
    from importlib import resources

    folder = resources.files("rung.serve").joinpath("page")
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        outside = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in outside and "https://" not in outside and "//cdn" not in outside, (
            file.name
        )
        assert (
            "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text
        ), file.name
        assert len(text.splitlines()) <= 400
    page = folder.joinpath("index.html").read_text(encoding="utf-8")
    assert "<style" not in page and " style=" not in page and " onclick=" not in page


def test_parts_of_characters_are_read_by_a_table_that_is_made_once(client, monkeypatch):
    detokenize._byte_symbols.cache_clear()
    made, make = [], detokenize.bytes_to_unicode
    monkeypatch.setattr(detokenize, "bytes_to_unicode", lambda: made.append(1) or make())
    answer = ask(client, "next", model="bigram", text="\U0001f642" * 500)
    assert len(answer["pieces"]) == 2000 and answer["pieces"][0] == "\\xf0"
    assert len(made) == 1
