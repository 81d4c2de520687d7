"""What is asked of a model, and how far each text has got."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rung.generation.detokenize import Detokenizer
from rung.generation.sampling import RandomStream, Sampling
from rung.serve.logprobs import Choice
from rung.serve.middleware import ApiError

BUFFER = 256  # pieces that may lie ready for a reader


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as tokens; `choices` say what its tokens cost, where that is asked for."""

    ids: list[int]
    text: str
    is_text: bool = False  # else it was given as ids
    choices: list[Choice] = field(default_factory=list)
    parts: list[str] = field(
        default_factory=list
    )  # of the text, one for each token that has a cost


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for: tokens to go on from, how, and to which end."""

    ids: list[int]
    sampling: Sampling
    ends: frozenset[int]
    context: Sequence[int] = ()  # tokens that the text goes on from; an answer is a text of its own
    spaced: bool = False  # whether white space stands before it
    likeliest: int | None = (
        None  # tokens beside each chosen one, of which log-probabilities are wanted
    )
    streams: bool = False  # whether the reader wants pieces as they come
    weighs: bool = False  # whether it asks what the ids themselves cost, and for no more


@dataclass
class Piece:
    """What there is of a text since the piece before; the last one has a reason to end, or an
    error.
    """

    text: str = ""
    choices: list[Choice] = field(default_factory=list)
    reason: str | None = None
    error: ApiError | None = None

    @property
    def is_last(self) -> bool:
        """Whether none follows."""
        return self.reason is not None or self.error is not None

    def join(self, more: "Piece") -> "Piece":
        """This one, and what came next."""
        return Piece(self.text + more.text, self.choices + more.choices, more.reason, more.error)


class Text:
    """An order, and how far it has got."""

    def __init__(
        self, order: Order, pieces: Detokenizer, times: tuple[float, float], news: asyncio.Event
    ) -> None:
        self.order, self.pieces, self.news = order, pieces, news
        self.begun, self.latest = times
        self.draws = RandomStream(order.sampling.seed)
        self.slot: int | None = None
        self.paused: Any = None  # what its slot is resumed from
        self.weighing: Iterator[list[Choice]] | None = None
        self.weighed: list[Choice] = []
        self.tokens = 0
        self.ready: deque[Piece] = deque()
        self.choices: list[
            tuple[Choice, int, int]
        ] = []  # of the next pieces; which characters of the text they add
        self.is_wanted = True
        self.is_waited_for = False
        self.is_begun = False  # its first piece is given

    def add(self, token: int, choice: Choice | None) -> str:
        """Go on with `token`: the text that is certain now."""
        start = len(self.pieces.decoded)
        piece = self.pieces.add(token)
        if choice is not None:
            self.choices.append((choice, start, max(start, len(self.pieces.decoded))))
        return piece

    def take_choices(self, is_last: bool) -> list[Choice]:
        """Those of tokens whose text is given out, each with it: of a stop string none, for they
        join to the text.
        """
        decoded, given = self.pieces.decoded, self.pieces.emitted
        count = max(
            (n for n, (_, start, end) in enumerate(self.choices, 1) if start < end <= given),
            default=0,
        )
        taken, self.choices = self.choices[:count], self.choices[count:]
        if is_last:
            taken, self.choices = taken + self.choices, []
            if self.pieces.stopped:
                taken = [
                    (choice, start, end) for choice, start, end in taken if start < len(decoded)
                ]
            taken[-1:] = [(choice, start, len(decoded)) for choice, start, _ in taken[-1:]]
        return [replace(choice, text=decoded[start:end]) for choice, start, end in taken]

    def take(self) -> Piece | None:
        """All that lies ready, as one piece."""
        if not self.ready:
            return None
        whole = self.ready.popleft()
        while self.ready:
            whole = whole.join(self.ready.popleft())
        return whole
