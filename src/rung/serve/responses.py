"""Responses to generation requests: collected and sent whole, or streamed as server-sent events.

Their JSON is that of the models in `schemas`. A key that is not set is left out, one that is set to
None is null.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from rung.serve.api_errors import ApiError
from rung.serve.engine import Engine
from rung.serve.logprobs import ScoredToken
from rung.serve.schemas import (
    BaseCompletionRequest,
    ChatCompletion,
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionTokensDetails,
    CompletionUsage,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
)
from rung.serve.sequences import Delta, Prompt, SequenceState

CLIENT_CLOSED = 499  # the status that is counted where the client has gone, as nginx has it
DEADLINE_MARGIN = 1.0  # seconds after its deadline by which the worker must have ended a text
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

T = TypeVar("T")


class ResponseBuilder:
    """Builds the response to `n` texts of each prompt; abstract: a subclass for each endpoint."""

    id_prefix = ""
    response_class: Any
    chunk_class: Any

    def __init__(
        self,
        engine: Engine,
        body: BaseCompletionRequest,
        prompts: Sequence[Prompt],
        texts: list[SequenceState],
        news: asyncio.Event,
    ) -> None:
        self.engine, self.body, self.prompts, self.news = engine, body, list(prompts), news
        scored = sum(text.request.scores_prompt for text in texts)
        self.scored_prompts, self.texts = texts[:scored], texts[scored:]
        self.head = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": engine.fingerprint,
        }

    def start_delta(self, index: int) -> Delta:
        """Make what an answer begins with, before anything is generated."""
        return Delta()

    def make_first_choice(self, index: int, delta: Delta) -> BaseModel | None:
        """Make the choice of a stream's first event; None for no such event."""
        raise NotImplementedError

    def make_choice(self, index: int, delta: Delta) -> BaseModel:
        """Make the choice of a whole answer."""
        raise NotImplementedError

    def make_chunk_choice(self, index: int, delta: Delta) -> BaseModel:
        """Make the choice of one event of a stream."""
        raise NotImplementedError

    async def respond(self, request: Request) -> Response:
        """Make the response. When the client goes, its texts are cancelled."""
        is_streamed = False
        try:
            if self.scored_prompts:
                await finish_unless_gone(request, self._collect_prompts())
            if self.body.stream:
                is_streamed = True
                return EventStream(self)
            choices = await finish_unless_gone(request, self._collect())
            whole = self._build(self.response_class, choices, usage=self._count_usage())
            return Response(dump_json(whole), media_type="application/json")
        finally:
            unread = self.scored_prompts if is_streamed else [*self.scored_prompts, *self.texts]
            self.engine.cancel(unread)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the server-sent events; an error on the way is the last of them."""
        starts = {index: self.start_delta(index) for index in range(self._choice_count)}
        choices = [self.make_first_choice(index, delta) for index, delta in starts.items()]
        if first := b"".join(self._event(choice) for choice in choices if choice is not None):
            yield first
        async for deltas in self._follow(self.texts):
            for error in (delta.error for _, delta in deltas if delta.error):
                yield b"data: " + error.to_json().encode() + b"\n\n"
                return
            yield b"".join(
                self._event(self.make_chunk_choice(index, delta)) for index, delta in deltas
            )
        if self.body.streams_usage:
            yield self._event(None)
        yield b"data: [DONE]\n\n"

    @property
    def _choice_count(self) -> int:
        return len(self.prompts) * (self.body.n or 1)

    def _prompt(self, index: int) -> Prompt:
        return self.prompts[index // (self.body.n or 1)]

    async def _follow(
        self, texts: Sequence[SequenceState]
    ) -> AsyncIterator[list[tuple[int, Delta]]]:
        """Yield the new deltas of all texts, as fast as the client takes them.

        A text that nobody ends in time is ended here.
        """
        left = dict(enumerate(texts))
        self.news.set()  # there may be deltas already
        while left:
            try:
                latest = max(text.deadline for text in left.values()) + DEADLINE_MARGIN
                # Without a task for each wait, as `wait_for` makes one under Python 3.11.
                async with asyncio.timeout(latest - time.monotonic()):
                    await self.news.wait()
            except TimeoutError:
                yield [(index, Delta(error=self.engine.timeout_error())) for index in left]
                return
            self.news.clear()
            taken = [(index, text.take()) for index, text in left.items()]
            deltas = [(index, delta) for index, delta in taken if delta is not None]
            if any(text.awaits_reader for text in left.values()):
                self.engine.wake()
            for index, delta in deltas:
                if delta.is_last:
                    del left[index]
            if deltas:
                yield deltas

    async def _collect_prompts(self) -> None:
        """Give each prompt its scored tokens; of given ids the first follows nothing."""
        async for deltas in self._follow(self.scored_prompts):
            for index, delta in deltas:
                if delta.error:
                    raise delta.error
                prompt = self.prompts[index]
                first = [] if prompt.is_text else [ScoredToken(prompt.ids[0], None, [])]
                self.prompts[index] = replace(prompt, scored=[*first, *delta.tokens])

    async def _collect(self) -> list[BaseModel]:
        answers = {index: self.start_delta(index) for index in range(self._choice_count)}
        async for deltas in self._follow(self.texts):
            for index, delta in deltas:
                if delta.error:
                    raise delta.error
                answers[index] = answers[index].join(delta)
        return [self.make_choice(index, answer) for index, answer in answers.items()]

    def _count_usage(self) -> CompletionUsage:
        read = sum(len(prompt.ids) for prompt in self.prompts)
        generated = sum(text.token_count for text in self.texts)
        return CompletionUsage(
            prompt_tokens=read,
            completion_tokens=generated,
            total_tokens=read + generated,
            prompt_tokens_details=PromptTokensDetails(**PromptTokensDetails().model_dump()),
            completion_tokens_details=CompletionTokensDetails(
                **CompletionTokensDetails().model_dump()
            ),
        )

    def _build(self, kind: Any, choices: Sequence[BaseModel], **usage: Any) -> BaseModel:
        object_type = kind.model_fields["object"].default
        built: BaseModel = kind(**self.head, object=object_type, choices=choices, **usage)
        return built

    def _event(self, choice: BaseModel | None) -> bytes:
        """Make an event of one choice; without a choice it holds the usage."""
        usage = {}
        if self.body.streams_usage:
            usage = {"usage": self._count_usage() if choice is None else None}
        choices = [] if choice is None else [choice]
        return b"data: " + dump_json(self._build(self.chunk_class, choices, **usage)) + b"\n\n"


class CompletionBuilder(ResponseBuilder):
    """Builds the response of `/v1/completions`."""

    id_prefix = "cmpl"
    response_class = chunk_class = Completion

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.offsets: dict[int, int] = {}  # where the next token of each text begins

    def start_delta(self, index: int) -> Delta:
        """Begin with the prompt where it is to be echoed."""
        if not getattr(self.body, "echo", False):
            return Delta()
        prompt = self._prompt(index)
        # The text before the first token with a log-probability belongs to no token.
        self.offsets[index] = len(prompt.text) - sum(map(len, prompt.pieces))
        pieces = zip(prompt.scored, prompt.pieces, strict=True) if prompt.scored else ()
        tokens = [replace(token, text=piece) for token, piece in pieces]
        return Delta(prompt.text, tokens, None if self.texts else "length")

    def make_first_choice(self, index: int, delta: Delta) -> BaseModel | None:
        """Make the choice of the echoed prompt, if there is one."""
        return self.make_choice(index, delta) if delta.text or delta.is_last else None

    def make_choice(self, index: int, delta: Delta) -> BaseModel:
        """Make the choice of a text, or of a part of it."""
        wants_logprobs = self.body.logprob_count is not None
        return CompletionChoice(
            index=index,
            text=delta.text,
            logprobs=self._make_logprobs(index, delta.tokens) if wants_logprobs else None,
            finish_reason=delta.finish_reason,  # type: ignore[arg-type]
        )

    make_chunk_choice = make_choice

    def _make_logprobs(self, index: int, tokens: list[ScoredToken]) -> CompletionLogprobs:
        offsets = []
        for token in tokens:
            offsets.append(self.offsets.get(index, 0))
            self.offsets[index] = offsets[-1] + len(token.text)
        return CompletionLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[
                None if token.logprob is None else self._name_top(token) for token in tokens
            ],
            text_offset=offsets,
        )

    def _name_top(self, scored: ScoredToken) -> dict[str, float]:
        """Name the most probable tokens; the chosen one by what it adds, as in `tokens`."""
        logprobs = dict(scored.top_logprobs)
        own = {scored.text: logprobs.pop(scored.token)} if scored.token in logprobs else {}
        others = {self.engine.name_token(token)[0]: logprob for token, logprob in logprobs.items()}
        return others | own


class ChatCompletionBuilder(ResponseBuilder):
    """Builds the response of `/v1/chat/completions`."""

    id_prefix = "chatcmpl"
    response_class, chunk_class = ChatCompletion, ChatCompletionChunk

    def make_first_choice(self, index: int, delta: Delta) -> BaseModel | None:
        """Make the choice that says who speaks."""
        return self._make_chunk(index, delta, ChoiceDelta(role="assistant", content=""))

    def make_choice(self, index: int, delta: Delta) -> BaseModel:
        """Make the choice of a whole message."""
        wants_logprobs = self.body.logprob_count is not None
        return ChatCompletionChoice(
            index=index,
            message=ChatCompletionMessage(role="assistant", content=delta.text, refusal=None),
            logprobs=self._make_logprobs(delta.tokens) if wants_logprobs else None,
            finish_reason=delta.finish_reason,  # type: ignore[arg-type]
        )

    def make_chunk_choice(self, index: int, delta: Delta) -> BaseModel:
        """Make the choice of what the message has gained."""
        content = ChoiceDelta(content=delta.text) if delta.text else ChoiceDelta()
        return self._make_chunk(index, delta, content)

    def _make_chunk(self, index: int, delta: Delta, content: ChoiceDelta) -> ChunkChoice:
        has_logprobs = self.body.logprob_count is not None and delta.tokens
        return ChunkChoice(
            index=index,
            delta=content,
            logprobs=self._make_logprobs(delta.tokens) if has_logprobs else None,
            finish_reason=delta.finish_reason,  # type: ignore[arg-type]
        )

    def _make_logprobs(self, tokens: list[ScoredToken]) -> ChoiceLogprobs:
        return ChoiceLogprobs(content=[self._describe(token) for token in tokens])

    def _describe(self, scored: ScoredToken) -> TokenLogprob:
        top = [
            TopLogprob(**self._name(token, logprob, scored))
            for token, logprob in scored.top_logprobs
        ]
        return TokenLogprob(**self._name(scored.token, scored.logprob, scored), top_logprobs=top)

    def _name(self, token: int, logprob: float | None, chosen: ScoredToken) -> dict[str, Any]:
        """Name a token; the chosen one as it stands in the text, if it is whole characters."""
        name, spelled = self.engine.name_token(token)
        if token == chosen.token and spelled is not None and name.encode() == spelled:
            name, spelled = chosen.text, chosen.text.encode()
        return {
            "token": name,
            "logprob": logprob,
            "bytes": None if spelled is None else list(spelled),
        }


class EventStream(StreamingResponse):
    """A stream of server-sent events; however it ends, its texts are cancelled."""

    def __init__(self, builder: ResponseBuilder) -> None:
        super().__init__(builder.stream(), headers=STREAM_HEADERS, media_type="text/event-stream")
        self.builder = builder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as an ASGI application."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.builder.engine.cancel(self.builder.texts)


async def finish_unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work` and return its result, but cancel it when the client goes.

    Raises `ApiError` then: nobody reads it, but it is counted.
    """
    gone, task = asyncio.create_task(wait_until_gone(request)), asyncio.create_task(work)
    try:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_CLOSED, "the client has gone", code="client_gone")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def wait_until_gone(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def dump_json(body: BaseModel) -> bytes:
    """Write a body as UTF-8, with the keys that were set."""
    return body.model_dump_json(exclude_unset=True).encode()
