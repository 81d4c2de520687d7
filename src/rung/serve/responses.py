"""Answers on their way to a client: gathered and sent whole, or streamed as server-sent events."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rung.serve.engine import Engine
from rung.serve.logprobs import Choice
from rung.serve.middleware import ApiError
from rung.serve.schemas import Asked, Usage
from rung.serve.sequences import Piece, Prompt, Text

CLOSED = 499  # what is noted where the client has gone, as nginx has it
LATE = 1.0  # seconds that the end of a text's time may be told too late
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

T = TypeVar("T")


class Reply:
    """What a client gets of its texts, `n` of each prompt; abstract: the two below say in which
    form.
    """

    kind = streamed_kind = id_start = ""

    def __init__(
        self,
        engine: Engine,
        body: Asked,
        prompts: Sequence[Prompt],
        texts: list[Text],
        news: asyncio.Event,
    ) -> None:
        self.engine, self.body, self.prompts, self.news = engine, body, list(prompts), news
        weighed = sum(text.order.weighs for text in texts)
        self.weights, self.texts = texts[:weighed], texts[weighed:]
        self.head = {
            "id": f"{self.id_start}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": engine.fingerprint,
        }

    def opening(self, index: int) -> Piece:
        """What an answer begins with, before anything is written."""
        return Piece()

    def opened(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """The choice that a stream begins with; None for none."""
        raise NotImplementedError

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """All of an answer."""
        raise NotImplementedError

    def streamed_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of it."""
        raise NotImplementedError

    async def answer(self, request: Request) -> Response:
        """The response; when the client goes, its texts are let go too."""
        is_streamed = False
        try:
            if self.weights:
                await finish_unless_gone(request, self._weigh_prompts())
            if self.body.stream:
                is_streamed = True
                return Events(self)
            choices = await finish_unless_gone(request, self._gather())
            facts = {**self.head, "object": self.kind, "choices": choices, "usage": self._count()}
            return Response(to_json(facts), media_type="application/json")
        finally:
            self.engine.drop(self.weights if is_streamed else [*self.weights, *self.texts])

    async def stream(self) -> AsyncIterator[bytes]:
        """The events; a fault on the way is the last of them."""
        openings = {index: self.opening(index) for index in range(self._size)}
        opened = [self.opened(index, piece) for index, piece in openings.items()]
        if first := b"".join(self._event(choice) for choice in opened if choice is not None):
            yield first
        async for pieces in self._follow(self.texts):
            for error in (piece.error for _, piece in pieces if piece.error):
                yield b"data: " + to_json(error.as_dict()) + b"\n\n"
                return
            yield b"".join(
                self._event(self.streamed_choice(index, piece)) for index, piece in pieces
            )
        if self.body.counts_stream:
            yield self._event(None)
        yield b"data: [DONE]\n\n"

    @property
    def _size(self) -> int:
        return len(self.prompts) * (self.body.n or 1)

    def _prompt(self, index: int) -> Prompt:
        return self.prompts[index // (self.body.n or 1)]

    async def _follow(self, texts: Sequence[Text]) -> AsyncIterator[list[tuple[int, Piece]]]:
        """What there is of each text, whenever there is something; it is read on as fast as the
        client takes it.

        A text that nobody ends in time is ended here.
        """
        left = dict(enumerate(texts))
        self.news.set()  # there may be something already
        while left:
            try:
                latest = max(text.latest for text in left.values()) + LATE
                await asyncio.wait_for(self.news.wait(), latest - time.monotonic())
            except TimeoutError:
                yield [(index, Piece(error=self.engine.too_late())) for index in left]
                return
            self.news.clear()
            taken = [(index, text.take()) for index, text in left.items()]
            pieces = [(index, piece) for index, piece in taken if piece is not None]
            if any(text.is_waited_for for text in left.values()):
                self.engine.wake()
            for index, piece in pieces:
                if piece.is_last:
                    del left[index]
            if pieces:
                yield pieces

    async def _weigh_prompts(self) -> None:
        """Give each prompt what its tokens cost: of given ids the first follows nothing."""
        async for pieces in self._follow(self.weights):
            for index, piece in pieces:
                if piece.error:
                    raise piece.error
                prompt = self.prompts[index]
                first = [] if prompt.is_text else [Choice(prompt.ids[0], None, [])]
                self.prompts[index] = replace(prompt, choices=[*first, *piece.choices])

    async def _gather(self) -> list[dict[str, Any]]:
        wholes = {index: self.opening(index) for index in range(self._size)}
        async for pieces in self._follow(self.texts):
            for index, piece in pieces:
                if piece.error:
                    raise piece.error
                wholes[index] = wholes[index].join(piece)
        return [self.choice(index, whole) for index, whole in wholes.items()]

    def _count(self) -> dict[str, Any]:
        read, written = (
            sum(len(prompt.ids) for prompt in self.prompts),
            sum(text.tokens for text in self.texts),
        )
        usage = Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
        return usage.model_dump()

    def _event(self, choice: dict[str, Any] | None) -> bytes:
        """With no choice it is the one that counts the tokens."""
        facts = {
            **self.head,
            "object": self.streamed_kind,
            "choices": [] if choice is None else [choice],
        }
        if self.body.counts_stream:
            facts["usage"] = self._count() if choice is None else None
        return b"data: " + to_json(facts) + b"\n\n"


class CompletionReply(Reply):
    """`/v1/completions`."""

    kind = streamed_kind = "text_completion"
    id_start = "cmpl"

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.offsets: dict[int, int] = {}  # characters of each text so far, as its tokens have them

    def opening(self, index: int) -> Piece:
        """The prompt, where it is to be echoed."""
        if not getattr(self.body, "echo", False):
            return Piece()
        prompt = self._prompt(index)
        self.offsets[index] = len(prompt.text) - sum(
            map(len, prompt.parts)
        )  # text that is no token's
        named = zip(prompt.choices, prompt.parts, strict=True) if prompt.choices else ()
        choices = [replace(choice, text=part) for choice, part in named]
        return Piece(prompt.text, choices, None if self.texts else "length")

    def opened(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """The prompt, where there is one to be echoed."""
        return self.choice(index, piece) if piece.text or piece.is_last else None

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The text, with the facts of its tokens where they are wanted."""
        logprobs = self._logprobs(index, piece.choices) if self.body.likeliest is not None else None
        return {
            "index": index,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.reason,
        }

    streamed_choice = choice

    def _logprobs(self, index: int, choices: list[Choice]) -> dict[str, list[Any]]:
        offsets = []
        for choice in choices:
            offsets.append(self.offsets.get(index, 0))
            self.offsets[index] = offsets[-1] + len(choice.text)
        return {
            "tokens": [choice.text for choice in choices],
            "token_logprobs": [choice.log for choice in choices],
            "top_logprobs": [
                None if choice.log is None else self._name_likeliest(choice) for choice in choices
            ],
            "text_offset": offsets,
        }

    def _name_likeliest(self, choice: Choice) -> dict[str, float]:
        """By what each token is; the chosen one by what it adds, as in `tokens`."""
        logs = dict(choice.likeliest)
        own = {choice.text: logs.pop(choice.token)} if choice.token in logs else {}
        return {self.engine.name_of(token)[0]: log for token, log in logs.items()} | own


class ChatReply(Reply):
    """`/v1/chat/completions`."""

    kind, streamed_kind, id_start = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opened(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """Who speaks."""
        return self._wrap(index, piece, "delta", {"role": "assistant", "content": ""})

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The message."""
        return self._wrap(
            index, piece, "message", {"role": "assistant", "content": piece.text, "refusal": None}
        )

    def streamed_choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """What it has more."""
        return self._wrap(index, piece, "delta", {"content": piece.text} if piece.text else {})

    def _wrap(self, index: int, piece: Piece, name: str, content: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        if self.body.likeliest is not None and (piece.choices or name == "message"):
            logprobs = {"content": [self._describe(choice) for choice in piece.choices]}
        return {"index": index, name: content, "logprobs": logprobs, "finish_reason": piece.reason}

    def _describe(self, choice: Choice) -> dict[str, Any]:
        """The token that was chosen, and those that were likeliest."""
        likeliest = [self._token(token, log, choice) for token, log in choice.likeliest]
        return self._token(choice.token, choice.log, choice) | {"top_logprobs": likeliest}

    def _token(self, token: int, log: float | None, chosen: Choice) -> dict[str, Any]:
        """As it stands in the text, if it is the chosen one and no part of a character."""
        name, spelled = self.engine.name_of(token)
        if token == chosen.token and spelled is not None and name.encode() == spelled:
            name, spelled = chosen.text, chosen.text.encode()
        return {"token": name, "logprob": log, "bytes": None if spelled is None else list(spelled)}


class Events(StreamingResponse):
    """A stream of server-sent events; however it ends, its texts are let go."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.stream(), headers=HEADERS, media_type="text/event-stream")
        self.reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reply.engine.drop(self.reply.texts)


async def finish_unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to.

    Raises `ApiError` where the client goes first, and gives the work up: nobody reads that, but it
    is counted.
    """
    gone, task = asyncio.create_task(wait_until_gone(request)), asyncio.create_task(work)
    try:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLOSED, "the client has gone", code="client_gone")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def wait_until_gone(request: Request) -> None:
    """Until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def to_json(facts: Any) -> bytes:
    """In UTF-8, a character whole."""
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
