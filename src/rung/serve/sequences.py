"""Requests to a model, and the state of the text that each of them generates."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rung.generation.detokenize import Detokenizer
from rung.generation.sampling import RandomStream, Sampling
from rung.serve.api_errors import ApiError
from rung.serve.logprobs import ScoredToken

MAX_UNREAD_DELTAS = 256  # deltas that may wait for a reader


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as text and as tokens; `scored` are its tokens with log-probabilities, if wanted."""

    ids: list[int]
    text: str
    is_text: bool = False  # False: it was given as token ids
    scored: list[ScoredToken] = field(default_factory=list)
    # The text, cut into one piece for each token that can have a log-probability.
    pieces: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Token ids to continue, how, and until which stop ids."""

    ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    context: Sequence[int] = ()  # ids that the text continues; empty for a text of its own
    after_space: bool = False  # whether white space stands before the text
    top_logprobs: int | None = None  # log-probabilities per token; None for none at all
    streams: bool = False  # whether the reader wants deltas as they come
    scores_prompt: bool = False  # whether only the ids themselves are to be scored


@dataclass
class Delta:
    """What a text has gained since the delta before; the last one has a finish reason or error."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: str | None = None
    error: ApiError | None = None

    @property
    def is_last(self) -> bool:
        """Whether no delta follows."""
        return self.finish_reason is not None or self.error is not None

    def join(self, more: "Delta") -> "Delta":
        """Join this delta and the next one."""
        return Delta(
            self.text + more.text, self.tokens + more.tokens, more.finish_reason, more.error
        )


class SequenceState:
    """A request and how far its text has got.

    The worker's thread writes, the reader takes deltas; `news` tells the reader that some are
    there.
    """

    def __init__(
        self,
        request: GenerationRequest,
        detokenizer: Detokenizer,
        times: tuple[float, float],
        news: asyncio.Event,
    ) -> None:
        self.request, self.detokenizer, self.news = request, detokenizer, news
        self.arrived, self.deadline = times
        self.random = RandomStream(request.sampling.seed)
        self.slot: int | None = None
        self.paused: Any = None  # what its slot is resumed from
        self.scoring: Iterator[list[ScoredToken]] | None = None
        self.scored: list[ScoredToken] = []
        self.token_count = 0
        self.deltas: deque[Delta] = deque()
        # Tokens of the next delta, each with the characters of the text that it adds.
        self.pending: list[tuple[ScoredToken, int, int]] = []
        self.is_wanted = True
        self.awaits_reader = False
        self.has_begun = False  # its first delta is given

    def add(self, token: int, scored: ScoredToken | None) -> str:
        """Append a token and return the text that has become certain."""
        start = len(self.detokenizer.decoded)
        text = self.detokenizer.add(token)
        if scored is not None:
            self.pending.append((scored, start, max(start, len(self.detokenizer.decoded))))
        return text

    def take_tokens(self, is_last: bool) -> list[ScoredToken]:
        """Take the scored tokens whose text is given out, so that they join to the text.

        The tokens of a stop string are left out.
        """
        decoded, emitted = self.detokenizer.decoded, self.detokenizer.emitted
        count = max(
            (n for n, (_, start, end) in enumerate(self.pending, 1) if start < end <= emitted),
            default=0,
        )
        taken, self.pending = self.pending[:count], self.pending[count:]
        if is_last:
            taken, self.pending = taken + self.pending, []
            if self.detokenizer.stopped:
                taken = [
                    (scored, start, end) for scored, start, end in taken if start < len(decoded)
                ]
            taken[-1:] = [(scored, start, len(decoded)) for scored, start, _ in taken[-1:]]
        return [replace(scored, text=decoded[start:end]) for scored, start, end in taken]

    def take(self) -> Delta | None:
        """Take all deltas that are ready, joined to one; None where there is none."""
        if not self.deltas:
            return None
        joined = self.deltas.popleft()
        while self.deltas:
            joined = joined.join(self.deltas.popleft())
        return joined
