"""Log probabilities of prompts and answers: the ruler's, token by token."""

import itertools
import json

import numpy
import pytest
import torch

from tests.conftest import SENTENCES

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
pytest.importorskip("httpx", reason=reason)

from rung.data.tokenizer import encode_documents  # noqa: E402
from rung.data.tokenizer_training import build_tokenizer  # noqa: E402
from rung.evaluation.surprisal import score_text  # noqa: E402
from rung.models import RUNGS, make_config  # noqa: E402
from rung.serve.registry import ServedModel  # noqa: E402
from tests.serve.conftest import Listening, say  # noqa: E402


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
