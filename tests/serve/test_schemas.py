"""Bodies of requests: what is wrong with one is named, and nothing that changes an answer is
ignored.
"""

import json

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from rung.chat.conversations import read_conversation  # noqa: E402
from rung.chat.dpo import read_preferences  # noqa: E402
from rung.errors import CorpusError  # noqa: E402
from rung.serve.api_errors import ApiError  # noqa: E402
from rung.serve.schemas import ChatCompletionRequest, CompletionRequest  # noqa: E402

QUESTION = {"role": "user", "content": "a"}


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


def test_half_a_character_is_named(server):
    for path, text in (
        ("/v1/completions", b'"prompt": "a \\ud83d b"'),
        ("/v1/completions", b'"prompt": "a", "stop": ["\\udc00"]'),
        ("/v1/chat/completions", b'"messages": [{"role": "user", "content": "a \\ud83d b"}]'),
    ):
        content, headers = b'{"model": "chat", ' + text + b"}", {"Content-Type": "application/json"}
        answer = httpx.post(server.url + path, content=content, headers=headers)
        assert answer.status_code == 400 and "half a character" in answer.json()["error"]["message"]
