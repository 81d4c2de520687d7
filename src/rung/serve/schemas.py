"""What clients send and get, in OpenAI's forms: `/openapi.json` is made of these.

Types are held to as they are written: "0.7" is no number. A key that is not known is refused, and
so is what would change an answer and is not done here, unless it asks for nothing.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rung.chat.conversations import read_message
from rung.errors import CorpusError, did_you_mean
from rung.serve.middleware import ApiError

# What no answer depends on, here as little as at OpenAI's.
HARMLESS = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
}
HARMLESS |= {"service_tier", "store", "user"}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # of what is not done, the values that ask for nothing
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
    # Other servers'.
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


def read_whole(given: Any) -> Any:
    """16.0 as 16: JSON has one kind of number."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


Whole = BeforeValidator(read_whole)


class Body(BaseModel):
    """What is posted."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def refuse_halves(cls, given: Any) -> Any:
        """Raise `ApiError` for what is no Unicode: one half of a surrogate pair, which no tokenizer
        takes.
        """
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
    """What a stream has beside the text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # which changes no answer


class Asked(Body):
    """What both kinds of request have in common."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str = Field(max_length=1000)
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None  # 0 takes the likeliest
    top_k: Annotated[int, Field(ge=-1, lt=2**31), Whole] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), Whole] | None = None
    n: Annotated[int, Field(ge=1, lt=2**31), Whole] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31), Whole] | None = None
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def likeliest(self) -> int | None:
        """How many tokens beside each chosen one are wanted with their log-probabilities; None for
        no such numbers.
        """
        raise NotImplementedError

    @property
    def counts_stream(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def refuse_unknown(self) -> None:
        """Raise `ApiError` for what would change the answer and is not done here, and for keys that
        nobody knows.
        """
        given = self.model_extra or {}
        unknown = [name for name in given if name not in NEUTRAL and name not in HARMLESS]
        if unknown:
            nearest = did_you_mean(unknown[0], [*type(self).model_fields, *NEUTRAL])
            why = f"unknown parameter {unknown[0][:100]!r}: {nearest}"
            raise ApiError(400, why, unknown[0], "unknown_parameter")
        asked = [
            name
            for name in NEUTRAL
            if given.get(name) is not None and given[name] not in NEUTRAL[name]
        ]
        if asked:
            are, them = ("is", "it") if len(asked) == 1 else ("are", "them")
            why = f"{', '.join(asked)} {are} not supported here: leave {them} out"
            raise ApiError(400, why, asked[0], "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "stream_options is only allowed when stream is true", "stream_options"
            )


class CompletionRequest(Asked):
    """Go on from a prompt: a text, some texts, or token ids, which are taken as they are."""

    prompt: str | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)] = ""
    logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = None
    echo: bool | None = None

    @property
    def likeliest(self) -> int | None:
        """As many as `logprobs` says."""
        return self.logprobs


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation, as it is sent."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]


def read_all(given: Any) -> Any:
    """The messages, by the one reader of what is learned from too. Raises `ApiError` for the first
    that is none.
    """
    if not isinstance(given, list):
        return given
    try:
        return [
            read_message(message, f"messages[{number}]") for number, message in enumerate(given)
        ]
    except (CorpusError, RecursionError) as error:
        raise ApiError(400, str(error), "messages", "unsupported_value") from error


Few = Field(min_length=1, max_length=1000)
Messages = Annotated[
    list[dict[str, str]],
    Few,
    BeforeValidator(read_all, json_schema_input_type=Annotated[list[Message], Few]),
]


class ChatRequest(Asked):
    """Answer a conversation."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31), Whole] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = None

    def refuse_unknown(self) -> None:
        """And for what goes with `logprobs` alone."""
        super().refuse_unknown()
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                400, "top_logprobs is only allowed when logprobs is true", "top_logprobs"
            )

    @property
    def likeliest(self) -> int | None:
        """As many as `top_logprobs` says, where `logprobs` are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None


class PromptDetails(BaseModel):
    """Of the tokens that were read."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(BaseModel):
    """Of the tokens that were written: all of them are the answer's."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()


class Logprobs(BaseModel):
    """The tokens of a completion, and what the model gives them before temperature and sifting."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(BaseModel):
    """The answer of `/v1/completions`; streamed, each event is one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token that might have been."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of an answer, and what the model gives them before temperature and sifting."""

    content: list[TokenLogprob]


class Answer(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletion(BaseModel):
    """The answer of `/v1/chat/completions`; streamed, each event is a `chat.completion.chunk` with
    a `delta`.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """A run that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["rung"] = "rung"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class Fault(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """Any answer of 400 and above."""

    error: Fault


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refusal},
    "5XX": {"model": Refusal},
}  # of any address
