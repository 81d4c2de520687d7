"""OpenAI's API under `/v1`: models, completions and chat completions, whole or streamed."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from secrets import randbits
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rung.chat.session import drop_oldest_turns
from rung.chat.template import find_chat_stop_ids
from rung.data.tokenizer import encode_ordinary
from rung.errors import RunError, first_line
from rung.generation.detokenize import Detokenizer
from rung.generation.sampling import Sampling
from rung.serve.api_errors import ERROR_RESPONSES, ApiError, check_token_ids, find_model
from rung.serve.engine import Engine
from rung.serve.limits import Limits
from rung.serve.middleware import find_arrival
from rung.serve.responses import ChatCompletionBuilder, CompletionBuilder, finish_unless_gone
from rung.serve.schemas import (
    BaseCompletionRequest,
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    Model,
    ModelList,
)
from rung.serve.sequences import GenerationRequest, Prompt

# Tokens of a completion, as OpenAI has it. A chat's answer may be as long as the server allows.
DEFAULT_MAX_TOKENS = 16
EVENT_STREAM: dict[str, Any] = {"text/event-stream": {}}


def make_router(engines: dict[str, Engine], limits: Limits) -> APIRouter:
    """Make the routes `/v1/models`, `/v1/completions` and `/v1/chat/completions`."""
    router = APIRouter(prefix="/v1", responses=ERROR_RESPONSES)
    started = int(time.time())

    @router.get("/models")
    async def models() -> ModelList:
        """List the runs that are served."""
        return ModelList(data=[Model(id=name, created=started) for name in engines])

    @router.get("/models/{name:path}")
    async def model(name: str) -> Model:
        """Show one of the runs."""
        return Model(id=find_model(engines, name).served.name, created=started)

    @router.post("/completions", responses={200: {"model": Completion, "content": EVENT_STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a prompt."""
        engine = find_model(engines, body.model)
        body.check_keys()
        arrived = find_arrival(request.scope)
        read = engine.prepare(partial(read_prompts, engine, body, limits), arrived)
        prompts = await finish_unless_gone(request, read)
        requests = [
            *request_prompt_scores(body, prompts),
            *request_completions(engine, body, prompts, limits),
        ]
        news = asyncio.Event()
        texts = engine.submit(requests, news, arrived)
        return await CompletionBuilder(engine, body, prompts, texts, news).respond(request)

    @router.post(
        "/chat/completions", responses={200: {"model": ChatCompletion, "content": EVENT_STREAM}}
    )
    async def chat(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation."""
        engine = find_model(engines, body.model)
        body.check_keys()
        arrived = find_arrival(request.scope)
        read = engine.prepare(partial(read_messages, engine, body, limits), arrived)
        prompt = await finish_unless_gone(request, read)
        requests = request_answers(engine, body, prompt, limits)
        news = asyncio.Event()
        texts = engine.submit(requests, news, arrived)
        return await ChatCompletionBuilder(engine, body, [prompt], texts, news).respond(request)

    return router


def request_completions(
    engine: Engine, body: CompletionRequest, prompts: Sequence[Prompt], limits: Limits
) -> list[GenerationRequest]:
    """Request `n` completions of each prompt; none where only the prompts are to be scored."""
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if not max_tokens and body.echo:
        return []
    stop_ids = frozenset(find_chat_stop_ids(engine.served.model, engine.tokenizer))
    return make_requests(body, prompts, max_tokens, stop_ids, limits)


def request_prompt_scores(
    body: CompletionRequest, prompts: Sequence[Prompt]
) -> list[GenerationRequest]:
    """Request the log-probabilities of each prompt's own tokens, where these are wanted."""
    if not body.echo or body.logprobs is None:
        return []
    sampling = Sampling(max_new_tokens=1)
    return [
        GenerationRequest(
            ids=prompt.ids,
            sampling=sampling,
            stop_ids=frozenset(),
            top_logprobs=body.logprobs,
            scores_prompt=True,
        )
        for prompt in prompts
    ]


def request_answers(
    engine: Engine, body: ChatCompletionRequest, prompt: Prompt, limits: Limits
) -> list[GenerationRequest]:
    """Request `n` answers to a conversation."""
    max_tokens = body.max_completion_tokens
    if max_tokens is None:
        max_tokens = limits.max_tokens if body.max_tokens is None else body.max_tokens
    stop_ids = frozenset(find_chat_stop_ids(engine.served.model, engine.tokenizer))
    return make_requests(body, [prompt], max_tokens, stop_ids, limits)


def make_requests(
    body: BaseCompletionRequest,
    prompts: Sequence[Prompt],
    max_tokens: int,
    stop_ids: frozenset[int],
    limits: Limits,
) -> list[GenerationRequest]:
    """Make `n` requests of each prompt, each with a seed of its own.

    Raises `ApiError` where they are more or longer than the limits allow.
    """
    count, most = body.n or 1, limits.max_batch + limits.max_queue
    if not 1 <= max_tokens <= limits.max_tokens:
        raise ApiError(
            400, f"max_tokens is {max_tokens}: it must be 1 to {limits.max_tokens}", "max_tokens"
        )
    if count > limits.max_choices or count * len(prompts) > most:
        raise ApiError(
            400,
            f"n is {count}, of {len(prompts)} prompts: at most {limits.max_choices} choices of one "
            f"prompt, and {most} in all",
            "n",
        )
    seed = randbits(62) if body.seed is None else body.seed
    return [
        GenerationRequest(
            ids=prompt.ids,
            sampling=Sampling(
                max_new_tokens=max_tokens,
                temperature=1.0 if body.temperature is None else body.temperature,
                top_k=max(0, body.top_k or 0),
                top_p=1.0 if body.top_p is None else body.top_p,
                stop=body.stop_strings,
                seed=(seed + number + 2**63) % 2**64 - 2**63,
            ),
            stop_ids=stop_ids,
            context=prompt.ids if prompt.text else (),
            after_space=prompt.text[-1:].isspace(),
            top_logprobs=body.logprob_count,
            streams=bool(body.stream),
        )
        for prompt in prompts
        for number in range(count)
    ]


def read_prompts(engine: Engine, body: CompletionRequest, limits: Limits) -> list[Prompt]:
    """Encode the prompts: a text begins a document, token ids are taken as they are.

    Raises `ApiError` for too many prompts, an empty list, or one that is too long.
    """
    given: Any = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    most = limits.max_batch + limits.max_queue
    if len(given) > most:
        raise ApiError(400, f"{len(given)} prompts: {most} are taken at once", "prompt")
    prompts = [read_text(engine, p) if isinstance(p, str) else read_ids(engine, p) for p in given]
    if not prompts:
        raise ApiError(
            400, "prompt is an empty list: give a text, which may be empty, or token ids", "prompt"
        )
    # A prompt that is only scored may be longer than the window: it is read in sliding windows.
    generates = not body.echo or body.max_tokens != 0
    window = engine.served.model.context_length if generates else None
    for prompt in prompts:
        check_length(prompt.ids, "prompt", limits, window)
    return prompts


def read_text(engine: Engine, text: str) -> Prompt:
    """Encode a text after BOS; raise `ApiError` for one without a token where there is no BOS."""
    encoding = encode_ordinary(engine.prompt_tokenizer, [text])[0]
    starts = [0, *(start for start, _ in encoding.offsets[1:]), len(text)]
    pieces = [text[start:end] for start, end in pairwise(starts[-len(encoding.ids) - 1 :])]
    bos = engine.tokenizer.bos_token_id
    ids = [*([] if bos is None else [bos]), *encoding.ids]
    if not ids:
        raise ApiError(
            400,
            "prompt has no token, and this model has none to begin with: write a word",
            "prompt",
        )
    check_token_ids(ids, engine.served.model.config.vocab_size, "prompt")
    # Without BOS the first token follows nothing, as that of given ids.
    return Prompt(ids=ids, text=text, is_text=bos is not None, pieces=pieces)


def read_ids(engine: Engine, ids: list[int]) -> Prompt:
    """Decode token ids to the text that they stand for; raise `ApiError` for an unknown one."""
    if not ids:
        raise ApiError(
            400, "prompt has no token: give some, or a text, which may be empty", "prompt"
        )
    check_token_ids(ids, engine.served.model.config.vocab_size, "prompt")
    detokenizer = Detokenizer(engine.tokenizer)
    pieces = [detokenizer.add(token) for token in ids]
    pieces[-1] += detokenizer.finish()
    return Prompt(ids=ids, text=detokenizer.text, pieces=pieces)


def read_messages(engine: Engine, body: ChatCompletionRequest, limits: Limits) -> Prompt:
    """Encode a conversation up to where the answer begins.

    Raises `ApiError` for a model without a chat template, and for messages that the template
    refuses or that are too long.
    """
    if not engine.tokenizer.chat_template:
        name = engine.served.name
        raise ApiError(
            400,
            f"{name} has no chat template: `rung tune RUN` makes a chat model of it",
            "model",
        )
    window = engine.served.model.context_length
    max_tokens = body.max_completion_tokens or body.max_tokens or limits.max_tokens
    try:
        _, _, ids = drop_oldest_turns(engine.prompt_tokenizer, body.messages, window, max_tokens)
    except RunError as error:
        message = f"this model's maximum context length is {window} tokens: {error}"
        raise ApiError(400, message, "messages", "context_length_exceeded") from error
    # A template may raise anything for what it refuses.
    except Exception as error:
        why = first_line(error)
        raise ApiError(
            400, f"the chat template refuses these messages: {why}", "messages"
        ) from error
    check_length(ids, "messages", limits)
    check_token_ids(ids, engine.served.model.config.vocab_size, "messages")
    return Prompt(ids=ids, text="")


def check_length(ids: Sequence[int], param: str, limits: Limits, window: int | None = None) -> None:
    """Raise `ApiError` for more tokens than the context window or the server's limit."""
    longest = limits.max_prompt_tokens
    remedy = ", or start the server with more --max-prompt-tokens"
    if window is not None and window <= longest:
        longest, remedy = window, ""
    if len(ids) > longest:
        # The words are OpenAI's: clients look for them.
        said = f"this model's maximum context length is {longest} tokens"
        raise ApiError(
            400,
            f"{said}, and {param} has {len(ids)}: shorten it{remedy}",
            param,
            "context_length_exceeded",
        )
