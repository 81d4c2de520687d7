"""The bodies of requests and responses, in OpenAI's forms; `/openapi.json` is made of these.

Types are strict: "0.7" is no number. An unknown key is refused, and so is a key that would change
the answer and is not supported here, unless its value asks for nothing.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rung.chat.conversations import read_message
from rung.errors import CorpusError, did_you_mean
from rung.serve.api_errors import ApiError

# Keys that change no answer, here or at OpenAI's.
IGNORED_KEYS = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
}
IGNORED_KEYS |= {"service_tier", "store", "user"}
# Keys that are not supported, with the values that ask for nothing.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    # Keys of other servers.
    "chat_template_kwargs": ({},),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    **dict.fromkeys(
        ("ignore_eos", "include_stop_str_in_output", "continue_final_message"), (False,)
    ),
    **dict.fromkeys(
        ("skip_special_tokens", "spaces_between_special_tokens", "add_generation_prompt"), (True,)
    ),
    **dict.fromkeys(
        ("allowed_token_ids", "prompt_logprobs", "truncate_prompt_tokens", "logits_processors"), ()
    ),
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()
    ),
}

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def parse_whole(given: Any) -> Any:
    """Read 16.0 as 16: JSON has one kind of number."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


WholeNumber = BeforeValidator(parse_whole)


class RequestBody(BaseModel):
    """The JSON body of a request."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def refuse_surrogates(cls, given: Any) -> Any:
        """Raise `ApiError` for half of a surrogate pair, which is no Unicode."""
        for name, value in given.items() if isinstance(given, dict) else ():
            try:
                json.dumps([name, value], ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                raise ApiError(
                    400, f"{name!a} holds {half!a}, half a character: send it whole", name
                ) from error
            except RecursionError as error:
                raise ApiError(400, f"{name!a} is nested too deeply", name) from error
        return given


class StreamOptions(BaseModel):
    """What a stream holds beside the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # changes no answer


class BaseCompletionRequest(RequestBody):
    """The keys that completions and chat completions share."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str = Field(max_length=1000)
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None  # 0 is greedy
    top_k: Annotated[int, Field(ge=-1, lt=2**31), WholeNumber] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WholeNumber] | None = None
    n: Annotated[int, Field(ge=1, lt=2**31), WholeNumber] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31), WholeNumber] | None = None
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The texts that end an answer; they are left out."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def logprob_count(self) -> int | None:
        """How many top log-probabilities are wanted per token; None for none at all."""
        raise NotImplementedError

    @property
    def streams_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_keys(self) -> None:
        """Raise `ApiError` for unknown keys, and for unsupported ones that ask for something."""
        given = self.model_extra or {}
        unknown = [
            name for name in given if name not in NEUTRAL_VALUES and name not in IGNORED_KEYS
        ]
        if unknown:
            nearest = did_you_mean(unknown[0], [*type(self).model_fields, *NEUTRAL_VALUES])
            why = f"unknown parameter {unknown[0][:100]!r}: {nearest}"
            raise ApiError(400, why, unknown[0], "unknown_parameter")
        unsupported = [
            name
            for name, neutral in NEUTRAL_VALUES.items()
            if given.get(name) is not None and given[name] not in neutral
        ]
        if unsupported:
            are, them = ("is", "it") if len(unsupported) == 1 else ("are", "them")
            why = f"{', '.join(unsupported)} {are} not supported here: leave {them} out"
            raise ApiError(400, why, unsupported[0], "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "stream_options is only allowed when stream is true", "stream_options"
            )


class CompletionRequest(BaseCompletionRequest):
    """The body of `/v1/completions`. A prompt is a text, some texts, or token ids as they are."""

    prompt: str | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)] = ""
    logprobs: Annotated[int, Field(ge=0, le=20), WholeNumber] | None = None
    echo: bool | None = None

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs


class TextPart(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class RequestMessage(BaseModel):
    """A message of a conversation, as it is sent."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]


def parse_messages(given: Any) -> Any:
    """Read the messages as training data is read; raise `ApiError` for the first that is wrong."""
    if not isinstance(given, list):
        return given
    try:
        return [
            read_message(message, f"messages[{number}]") for number, message in enumerate(given)
        ]
    except (CorpusError, RecursionError) as error:
        raise ApiError(400, str(error), "messages", "unsupported_value") from error


MessageCount = Field(min_length=1, max_length=1000)
Messages = Annotated[
    list[dict[str, str]],
    MessageCount,
    BeforeValidator(
        parse_messages, json_schema_input_type=Annotated[list[RequestMessage], MessageCount]
    ),
]


class ChatCompletionRequest(BaseCompletionRequest):
    """The body of `/v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31), WholeNumber] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WholeNumber] | None = None

    def check_keys(self) -> None:
        super().check_keys()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                400, "top_logprobs is only allowed when logprobs is true", "top_logprobs"
            )

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class PromptTokensDetails(BaseModel):
    """The prompt's tokens by kind."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    """The completion's tokens by kind; here all of them are the answer's."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(BaseModel):
    """The tokens of a request: those that were read and those that were generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class CompletionLogprobs(BaseModel):
    """The tokens of a completion and their log-probabilities, before temperature and top-p."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(BaseModel):
    """The response of `/v1/completions`. A stream's events are such objects too."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None


class TopLogprob(BaseModel):
    """One of the most probable tokens."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """The tokens of an answer and their log-probabilities, before temperature and top-p."""

    content: list[TokenLogprob]


class ChatCompletionMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatCompletionChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatCompletionMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletion(BaseModel):
    """The response of `/v1/chat/completions`; streamed, each event is a `ChatCompletionChunk`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionChoice]
    usage: CompletionUsage | None = None


class ChoiceDelta(BaseModel):
    """What a message has gained since the chunk before."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """A part of one answer."""

    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletionChunk(BaseModel):
    """An event of a streamed chat completion. Only the last one, without choices, has the usage."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None


class Model(BaseModel):
    """A run that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["rung"] = "rung"


class ModelList(BaseModel):
    """The runs that are served."""

    object: Literal["list"] = "list"
    data: list[Model]
