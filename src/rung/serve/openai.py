"""`/v1`: models, completions and chats as OpenAI's clients ask for them, whole or streamed."""

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
from rung.serve.engine import Engine
from rung.serve.middleware import ApiError, Limits, check_ids, find_arrival, look_up
from rung.serve.responses import ChatReply, CompletionReply, finish_unless_gone
from rung.serve.schemas import (
    REFUSALS,
    Asked,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Model,
    Models,
)
from rung.serve.sequences import Order, Prompt

DEFAULT_TOKENS = (
    16  # of a completion, as OpenAI has it; a chat's answer may be as long as the server allows
)
STREAM: dict[str, Any] = {"text/event-stream": {}}


def make_router(engines: dict[str, Engine], limits: Limits) -> APIRouter:
    """`/v1/models`, `/v1/completions`, `/v1/chat/completions`."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)
    begun = int(time.time())

    @router.get("/models")
    async def models() -> Models:
        """The runs that are served."""
        return Models(data=[Model(id=name, created=begun) for name in engines])

    @router.get("/models/{name:path}")
    async def model(name: str) -> Model:
        """One of them."""
        return Model(id=look_up(engines, name).served.name, created=begun)

    @router.post("/completions", responses={200: {"model": Completion, "content": STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on from a prompt."""
        engine = look_up(engines, body.model)
        body.refuse_unknown()
        arrived = find_arrival(request.scope)
        read = engine.prepare(partial(read_prompts, engine, body, limits), arrived)
        prompts = await finish_unless_gone(request, read)
        orders = [*order_weights(body, prompts), *order_completions(engine, body, prompts, limits)]
        news = asyncio.Event()
        return await CompletionReply(
            engine, body, prompts, engine.submit(orders, news, arrived), news
        ).answer(request)

    @router.post("/chat/completions", responses={200: {"model": ChatCompletion, "content": STREAM}})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        engine = look_up(engines, body.model)
        body.refuse_unknown()
        arrived = find_arrival(request.scope)
        read = engine.prepare(partial(read_messages, engine, body, limits), arrived)
        prompt = await finish_unless_gone(request, read)
        orders = order_answers(engine, body, prompt, limits)
        news = asyncio.Event()
        return await ChatReply(
            engine, body, [prompt], engine.submit(orders, news, arrived), news
        ).answer(request)

    return router


def order_completions(
    engine: Engine, body: CompletionRequest, prompts: Sequence[Prompt], limits: Limits
) -> list[Order]:
    """`n` of each prompt; none where only the prompts themselves are asked for."""
    wanted = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if not wanted and body.echo:
        return []
    ends = frozenset(find_chat_stop_ids(engine.served.model, engine.tokenizer))
    return make_orders(body, prompts, wanted, ends, limits)


def order_weights(body: CompletionRequest, prompts: Sequence[Prompt]) -> list[Order]:
    """What the tokens of each prompt cost, where that is asked for."""
    if not body.echo or body.logprobs is None:
        return []
    sampling = Sampling(max_new_tokens=1)
    return [
        Order(
            ids=prompt.ids,
            sampling=sampling,
            ends=frozenset(),
            likeliest=body.logprobs,
            weighs=True,
        )
        for prompt in prompts
    ]


def order_answers(engine: Engine, body: ChatRequest, prompt: Prompt, limits: Limits) -> list[Order]:
    """`n` of them."""
    asked = (
        body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    )
    wanted = limits.max_tokens if asked is None else asked
    ends = frozenset(find_chat_stop_ids(engine.served.model, engine.tokenizer))
    return make_orders(body, [prompt], wanted, ends, limits)


def make_orders(
    body: Asked, prompts: Sequence[Prompt], wanted: int, ends: frozenset[int], limits: Limits
) -> list[Order]:
    """Of each prompt `n`, each with a seed of its own."""
    count, most = body.n or 1, limits.max_batch + limits.max_queue
    if not 1 <= wanted <= limits.max_tokens:
        raise ApiError(
            400, f"max_tokens is {wanted}: it must be 1 to {limits.max_tokens}", "max_tokens"
        )
    if count > limits.max_choices or count * len(prompts) > most:
        raise ApiError(
            400,
            f"n is {count}, of {len(prompts)} prompts: {limits.max_choices} of one, and {most} in "
            f"all",
            "n",
        )
    seed = randbits(62) if body.seed is None else body.seed
    return [
        Order(
            ids=prompt.ids,
            sampling=Sampling(
                max_new_tokens=wanted,
                temperature=1.0 if body.temperature is None else body.temperature,
                top_k=max(0, body.top_k or 0),
                top_p=1.0 if body.top_p is None else body.top_p,
                stop=body.stops,
                seed=(seed + number + 2**63) % 2**64 - 2**63,
            ),
            ends=ends,
            context=prompt.ids if prompt.text else (),
            spaced=prompt.text[-1:].isspace(),
            likeliest=body.likeliest,
            streams=bool(body.stream),
        )
        for prompt in prompts
        for number in range(count)
    ]


def read_prompts(engine: Engine, body: CompletionRequest, limits: Limits) -> list[Prompt]:
    """The prompts as tokens: a text begins a document, ids stand for themselves."""
    given: Any = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if len(given) > limits.max_batch + limits.max_queue:
        most = limits.max_batch + limits.max_queue
        raise ApiError(400, f"{len(given)} prompts: {most} are taken at once", "prompt")
    prompts = [read_text(engine, p) if isinstance(p, str) else read_ids(engine, p) for p in given]
    writes = (
        not body.echo or body.max_tokens != 0
    )  # else the prompts are scored, in windows if need be
    if not prompts:
        raise ApiError(
            400, "prompt is an empty list: give a text, which may be empty, or token ids", "prompt"
        )
    window = engine.served.model.context_length if writes else None
    for prompt in prompts:
        check_length(prompt.ids, "prompt", limits, window)
    return prompts


def read_text(engine: Engine, text: str) -> Prompt:
    """A text, with what begins a document in front."""
    encoding = encode_ordinary(engine.reader, [text])[0]
    starts = [0, *(start for start, _ in encoding.offsets[1:]), len(text)]
    parts = [text[start:end] for start, end in pairwise(starts[-len(encoding.ids) - 1 :])]
    ids = [engine.tokenizer.bos_token_id, *encoding.ids]
    check_ids(ids, engine.served.model.config.vocab_size, "prompt")
    return Prompt(ids=ids, text=text, is_text=True, parts=parts)


def read_ids(engine: Engine, ids: list[int]) -> Prompt:
    """Token ids, all of which must be known."""
    if not ids:
        raise ApiError(
            400, "prompt has no token: give some, or a text, which may be empty", "prompt"
        )
    check_ids(ids, engine.served.model.config.vocab_size, "prompt")
    pieces = Detokenizer(engine.tokenizer)
    parts = [pieces.add(token) for token in ids]
    parts[-1] += pieces.finish()
    return Prompt(ids=ids, text=pieces.text, parts=parts)


def read_messages(engine: Engine, body: ChatRequest, limits: Limits) -> Prompt:
    """The conversation as tokens, up to where the answer begins."""
    if not engine.tokenizer.chat_template:
        name = engine.served.name
        raise ApiError(
            400,
            f"{name} has no chat template: `rung tune RUN` makes a model that chats of it",
            "model",
        )
    try:
        wanted = body.max_completion_tokens or body.max_tokens or limits.max_tokens
        _, _, ids = drop_oldest_turns(
            engine.reader, body.messages, engine.served.model.context_length, wanted
        )
    except RunError as error:
        window = (
            f"this model's maximum context length is {engine.served.model.context_length} tokens"
        )
        raise ApiError(400, f"{window}: {error}", "messages", "context_length_exceeded") from error
    except Exception as error:  # what a template refuses it says in its own way
        why = first_line(error)
        raise ApiError(
            400, f"the chat template refuses these messages: {why}", "messages"
        ) from error
    check_length(ids, "messages", limits)
    check_ids(ids, engine.served.model.config.vocab_size, "messages")
    return Prompt(ids=ids, text="")


def check_length(ids: Sequence[int], param: str, limits: Limits, window: int | None = None) -> None:
    """Raise `ApiError` for more tokens than the model looks at, or the server reads."""
    longest, remedy = (
        limits.max_prompt_tokens,
        ", or start the server with more --max-prompt-tokens",
    )
    if window is not None and window <= longest:
        longest, remedy = window, ""
    if len(ids) > longest:
        # OpenAI's words: clients look for them.
        said = f"this model's maximum context length is {longest} tokens"
        raise ApiError(
            400,
            f"{said}, and {param} has {len(ids)}: shorten it{remedy}",
            param,
            "context_length_exceeded",
        )
