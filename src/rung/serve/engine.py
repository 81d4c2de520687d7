"""Models at work: the texts of each wait in a bounded queue and share the steps of one loop, in one thread for all.

What a text has got is put where its reader takes it. A reader that falls `BUFFER` pieces behind is waited for: its
text keeps its slot and takes no step, until it reads on or its time is over; no other text waits for it.
"""

import asyncio
import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rung.evaluate import read_documents
from rung.generate.pieces import Pieces, show_token, spell_token
from rung.generate.sampling import Draws, Sampling, choose_each
from rung.generate.slots import Slots
from rung.models import CausalModel
from rung.serve.limits import ApiError, Limits, Metrics
from rung.serve.served import Served, identify

logger = logging.getLogger(__name__)

BUFFER = 256  # pieces that may lie ready for a reader
TOGETHER = 0.016  # seconds of news that readers are told at once: each time costs a core that the model needs
PATIENCE = 0.2  # seconds between two looks at the clock, while all readers are waited for
LEAST_LOG = -9999.0  # stands for the logarithm of 0, which JSON has not


@dataclass(frozen=True)
class Choice:
    """A token that was chosen, its log-probability as the model gives it, those of the likeliest, and what the token
    adds to the text: nothing where it is a part of a character that others finish.
    """

    token: int
    log: float | None  # None where it follows nothing
    likeliest: list[tuple[int, float]]
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as tokens; `choices` say what its tokens cost, where that is asked for."""

    ids: list[int]
    text: str
    is_text: bool = False  # else it was given as ids
    choices: list[Choice] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # of the text, one for each token that has a cost


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for: tokens to go on from, how, and to which end."""

    ids: list[int]
    sampling: Sampling
    ends: frozenset[int]
    context: Sequence[int] = ()  # tokens that the text goes on from; an answer is a text of its own
    spaced: bool = False  # whether white space stands before it
    likeliest: int | None = None  # tokens beside each chosen one, of which log-probabilities are wanted
    streams: bool = False  # whether the reader wants pieces as they come


@dataclass
class Piece:
    """What there is of a text since the piece before; the last one has a reason to end, or an error."""

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

    def __init__(self, order: Order, pieces: Pieces, seconds: float, news: asyncio.Event) -> None:
        self.order, self.pieces, self.news = order, pieces, news
        self.begun = time.monotonic()
        self.latest = self.begun + seconds
        self.draws = Draws(order.sampling.seed)
        self.slot: int | None = None
        self.tokens = 0
        self.ready: deque[Piece] = deque()
        self.choices: list[tuple[Choice, int, int]] = []  # of the next pieces; which characters of the text they add
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
        """Those of tokens whose text is given out, each with it: of a stop string none, for they join to the text."""
        decoded, given = self.pieces.decoded, self.pieces.given
        count = max((n for n, (_, start, end) in enumerate(self.choices, 1) if start < end <= given), default=0)
        taken, self.choices = self.choices[:count], self.choices[count:]
        if is_last:
            taken, self.choices = taken + self.choices, []
            if self.pieces.stopped:
                taken = [(choice, start, end) for choice, start, end in taken if start < len(decoded)]
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


class Worker:
    """The thread that continues the texts of all models, a turn of each at a time.

    One for all: each thread that computes on several cores keeps helpers of its own, and where these are more than the
    cores, they sleep at every turn, not spin.
    """

    def __init__(self, engines: Sequence["Engine"]) -> None:
        self.engines = engines
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.is_stopping = False
        for engine in engines:
            engine.changed = self.changed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work for the readers of this loop."""
        self.is_stopping = False
        for engine in self.engines:
            engine.announce = partial(loop.call_soon_threadsafe, engine.tell_readers)
        self.thread = threading.Thread(target=self._run, name="rung-worker", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End all texts and the thread."""
        with self.changed:
            self.is_stopping = True
            self.changed.notify()
        if self.thread:
            self.thread.join()
            self.thread = None

    @property
    def is_working(self) -> bool:
        """Whether the thread is there."""
        return self.thread is not None and self.thread.is_alive()

    def _run(self) -> None:
        with torch.inference_mode():
            while not self.is_stopping:
                have_gone_on = [engine.turn() for engine in self.engines]
                if not any(have_gone_on):
                    self._wait()
        for engine in self.engines:
            engine.end_all(ApiError(503, "the server is shutting down", code="shutting_down"))

    def _wait(self) -> None:
        with self.changed:
            can_begin = any(engine.waiting and engine.slots.free for engine in self.engines)
            is_busy = any(engine.running or engine.waiting for engine in self.engines)
            if not can_begin and not self.is_stopping:
                self.changed.wait(PATIENCE if is_busy else None)


class Engine:
    """A served model and its texts; `announce` is told when readers have news. A `Worker` gives it its turns."""

    def __init__(self, served: Served, limits: Limits, metrics: Metrics) -> None:
        self.served, self.limits, self.metrics = served, limits, metrics
        self.tokenizer = copy.deepcopy(served.tokenizer)  # whose settings nobody changes
        self.reader = copy.deepcopy(served.tokenizer)  # for whoever holds `reading`
        self.reading = threading.Lock()
        self.fingerprint = identify(served)
        self.names: dict[int, tuple[str, bytes | None]] = {}
        self.slots = Slots(served.model, limits.max_batch)
        self.waiting: deque[Text] = deque()
        self.running: list[Text] = []
        self.news: list[Text] = []
        self.told = 0.0  # when
        self.is_urgent = False  # a text has begun or ended
        self.changed = threading.Condition()  # its worker's
        self.announce: Callable[[], object] = self.tell_readers
        self.written = metrics.tokens.labels(served.name, "written")
        self.read = metrics.tokens.labels(served.name, "read")
        metrics.waiting.labels(served.name).set_function(lambda: len(self.waiting))
        metrics.running.labels(served.name).set_function(lambda: len(self.running))
        self.first_token = metrics.first_token.labels(served.name)

    def submit(self, orders: Sequence[Order], news: asyncio.Event) -> list[Text]:
        """Have them all continued, or none: raises `ApiError` where the queue is full."""
        texts = []
        for order in orders:
            pieces = Pieces(self.tokenizer, order.sampling.stop, order.context, spaced=order.spaced)
            texts.append(Text(order, pieces, self.limits.seconds, news))
        with self.changed:
            there = len(self.waiting) + len(self.running)
            if there + len(texts) > self.limits.max_batch + self.limits.max_queue:
                raise ApiError(429, f"{there} texts are in work or wait: try again", code="queue_full")
            self.waiting.extend(texts)
            self.changed.notify()
        return texts

    def drop(self, texts: Sequence[Text]) -> None:
        """Nobody wants them any more."""
        for text in texts:
            text.is_wanted = False
        self.wake()

    def wake(self) -> None:
        """Look at what has changed."""
        with self.changed:
            self.changed.notify()

    def name_of(self, token: int) -> tuple[str, bytes | None]:
        """A token as text, and the bytes that it stands for; None for a special one."""
        if token not in self.names:
            self.names[token] = show_token(self.tokenizer, token), spell_token(self.tokenizer, token)
        return self.names[token]

    def tell_readers(self) -> None:
        """In the readers' own loop: there is something to take."""
        news, self.news = self.news, []
        for text in news:
            text.news.set()

    def turn(self) -> bool:
        """Every text that can go on does so by a token, or is read a little further; False where there is none."""
        try:
            return self._take_turn()
        except Exception:
            logger.exception("%s: a step failed", self.served.name)
            self.end_all(ApiError(500, "the model failed; the server's log says why", code="failed"))
            return True

    def _take_turn(self) -> bool:
        self._sort_out()
        going = [text for text in self.running if not text.is_waited_for]
        if not going:
            self._tell(now=True)
            return False
        places = {text.slot: text for text in going}
        ready, logits = self.slots.advance([text.slot for text in going if text.slot is not None])
        texts = [places[slot] for slot in ready]
        tokens = choose_each(logits, [text.order.sampling for text in texts], [text.draws for text in texts])
        self.written.inc(len(tokens))
        for row, (text, token) in enumerate(zip(texts, tokens, strict=True)):
            self._go_on(text, token, logits, row)
        self._tell(now=self.is_urgent)
        return True

    def _tell(self, now: bool) -> None:
        """Have readers told what there is for them, `now` or when it is time again."""
        if self.news and (now or time.monotonic() - self.told > TOGETHER):
            self.told, self.is_urgent = time.monotonic(), False
            self.announce()

    def _sort_out(self) -> None:
        """Let go of texts that nobody wants or whose time is over, and take in those that wait."""
        now = time.monotonic()
        for text in [*self.running, *self.waiting]:
            if not text.is_wanted:
                self._end(text, Piece())
            elif now > text.latest:
                seconds = f"{self.limits.seconds:g} seconds"
                self._end(text, Piece(error=ApiError(504, f"the answer took more than {seconds}", code="timeout")))
            elif text.is_waited_for:
                text.is_waited_for = len(text.ready) >= BUFFER
        while self.slots.free:
            with self.changed:
                if not self.waiting:
                    return
                text = self.waiting.popleft()
                self.running.append(text)
            self.read.inc(len(text.order.ids))
            text.slot = self.slots.begin(text.order.ids, text.order.sampling.max_new_tokens)

    def _go_on(self, text: Text, token: int, logits: Tensor, row: int) -> None:
        order = text.order
        text.tokens += 1
        if text.tokens == 1:
            self.first_token.observe(time.monotonic() - text.begun)
        if token in order.ends:
            self._end(text, Piece(reason="stop"))
            return
        choice = None if order.likeliest is None else weigh(logits[row], token, order.likeliest)
        piece = text.add(token, choice)
        if text.pieces.stopped or text.tokens == order.sampling.max_new_tokens:
            self._end(text, Piece(piece, reason="stop" if text.pieces.stopped else "length"))
            return
        if text.slot is not None:
            self.slots.put(text.slot, token)
        if piece:
            self._give(text, Piece(piece))

    def _give(self, text: Text, piece: Piece) -> None:
        if text.choices:
            piece.choices = text.take_choices(piece.is_last)
        text.ready.append(piece)
        if order_streams := text.order.streams:
            text.is_waited_for = len(text.ready) >= BUFFER
        if order_streams or piece.is_last:
            self.news.append(text)
            self.is_urgent |= piece.is_last or not text.is_begun
            text.is_begun = True

    def _end(self, text: Text, last: Piece) -> None:
        """Give the last piece, and the slot free."""
        with self.changed:
            if text in self.waiting:
                self.waiting.remove(text)
            else:
                self.running.remove(text)
        if text.slot is not None:
            self.slots.leave(text.slot)
        if text.is_wanted:
            rest = text.pieces.finish()
            if last.reason is not None and text.pieces.stopped:
                last.reason = "stop"
            last.text += rest
            self._give(text, last)

    def end_all(self, error: ApiError) -> None:
        """Let go of all texts, for this reason."""
        for text in [*self.running, *self.waiting]:
            self._end(text, Piece(error=error))
        self._tell(now=True)


def leave_a_core() -> None:
    """Have models compute on all cores but one, which the readers need: threads that share out a step wait for one
    another many times in it, and would wait for a core each time. Many texts together are worth that core all the same.

    Before anything is computed, for what has helpers keeps them.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def weigh(logits: Tensor, token: int, likeliest: int) -> Choice:
    """The token's log-probability before temperature and sifting, and the likeliest tokens with theirs."""
    logs = logits.float().log_softmax(-1).clamp(min=LEAST_LOG)
    best = logs.topk(min(likeliest, len(logs)))
    pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Choice(token, logs[token].item(), pairs)


@torch.inference_mode()
def score_prompt(model: CausalModel, ids: list[int], likeliest: int) -> list[Choice]:
    """What each of the ids but the first costs after those before it, read as a score is: in windows if need be."""
    if len(ids) < 2:
        return []
    count = min(likeliest, model.config.vocab_size)

    def read(model: CausalModel, pieces: list[list[int]], state: Any) -> tuple[Tensor, Any]:
        width = max(2, max(map(len, pieces)))
        rows = torch.tensor([piece + [0] * (width - len(piece)) for piece in pieces], device=model.device)
        output = model(rows[:, :-1], past_key_values=state, use_cache=model.context_length is None)
        logs = output.logits.double().log_softmax(-1).clamp(min=LEAST_LOG)
        best = logs.topk(count)
        mine = logs.gather(-1, rows[:, 1:, None])
        return torch.cat([mine, best.indices.double(), best.values], dim=-1).cpu(), output.past_key_values

    values = torch.empty(len(ids) - 1, 1 + 2 * count, dtype=torch.double)
    read_documents(model, [ids], [values], read)
    return [
        Choice(token, log, [(int(best), value) for best, value in zip(row[:count], row[count:], strict=True)])
        for token, (log, *row) in zip(ids[1:], values.tolist(), strict=True)
    ]
