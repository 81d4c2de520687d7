"""Models at work: the texts of each wait in a bounded queue and share the steps of one loop, in one
thread for all.

What a text has got is put where its reader takes it. A reader that falls `BUFFER` pieces behind is
waited for: its text takes no step until it reads on, and gives up its slot where another waits for
one. A fault is that of the text in whose turn it comes up.
"""

import asyncio
import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import torch
from anyio import CapacityLimiter
from torch import Tensor

from rung.generation.batching import ContinuousBatch
from rung.generation.detokenize import Detokenizer, token_to_bytes, token_to_text
from rung.generation.sampling import sample_each
from rung.serve.logprobs import weigh, weigh_prompt
from rung.serve.middleware import ApiError, Limits, Metrics, check_ids, note_failure
from rung.serve.registry import ServedModel, identify
from rung.serve.sequences import BUFFER, Order, Piece, Text
from rung.serve.threads import run_in_turn

logger = logging.getLogger(__name__)

# Seconds of news that readers are told at once: each time costs a core that the model needs.
TOGETHER = 0.016
PATIENCE = 0.2  # seconds between two looks at the clock, while all readers are waited for

T = TypeVar("T")


class Worker:
    """The thread that continues the texts of all models, a turn of each at a time.

    One for all: each thread that computes on several cores keeps helpers of its own, and where
    these are more than the cores, they sleep at every turn, not spin.
    """

    def __init__(self, engines: Sequence["Engine"]) -> None:
        self.engines = engines
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.is_stopping = False
        self.turned = 0.0  # when it last had a look at all texts
        for engine in engines:
            engine.changed, engine.worker = self.changed, self

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work for the readers of this loop."""
        self.is_stopping = False
        self.turned = time.monotonic()
        for engine in self.engines:
            engine.announce = partial(loop.call_soon_threadsafe, engine.tell_readers)
        self.thread = threading.Thread(target=self._run, name="rung-worker", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Have all texts and the thread end, after the turn that they are in."""
        with self.changed:
            self.is_stopping = True
            self.changed.notify()

    def stop(self) -> None:
        """Wait until they have ended."""
        self.end()
        if self.thread:
            self.thread.join()
            self.thread = None

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def is_working(self) -> bool:
        """Whether it comes round: a turn that takes longer than an answer may is its last."""
        is_stuck = time.monotonic() - self.turned > max(
            engine.limits.seconds for engine in self.engines
        )
        is_busy = any(engine.running for engine in self.engines)
        return self.is_alive and not (is_busy and is_stuck)

    def _run(self) -> None:
        """Turn after turn; whatever goes wrong beside the turns ends the texts, and the work begins
        again.
        """
        while not self.is_stopping:
            try:
                self._work()
            except BaseException:
                logger.exception("the worker failed, and begins again")
                time.sleep(PATIENCE)
                for engine in self.engines:
                    engine.begin_again()
        for engine in self.engines:
            engine.end_all(ApiError(503, "the server is shutting down", code="shutting_down"))

    @torch.inference_mode()
    def _work(self) -> None:
        while not self.is_stopping:
            self.turned = time.monotonic()
            have_gone_on = [engine.turn() for engine in self.engines]
            if not any(have_gone_on):
                self._wait()

    def _wait(self) -> None:
        with self.changed:
            is_busy = any(
                engine.running or engine.waiting or engine.paused for engine in self.engines
            )
            can_begin = any(engine.waiting and engine.has_room for engine in self.engines)
            if not can_begin and not self.is_stopping:
                self.changed.wait(PATIENCE if is_busy else None)


class Engine:
    """A served model and its texts; `announce` is told when readers have news. A `Worker` gives it
    its turns.
    """

    def __init__(self, served: ServedModel, limits: Limits, metrics: Metrics) -> None:
        self.served, self.limits, self.metrics = served, limits, metrics
        self.tokenizer = copy.deepcopy(served.tokenizer)  # whose settings nobody changes
        self.reader = copy.deepcopy(
            served.tokenizer
        )  # for what is prepared, one request after another
        self.turn_of_reader = CapacityLimiter(1)
        self.preparing = 0  # requests
        self.fingerprint = identify(served)
        self.names: dict[int, tuple[str, bytes | None]] = {}
        self.slots = ContinuousBatch(served.model, limits.max_batch)
        self.waiting: deque[Text] = deque()
        self.running: list[Text] = []
        self.paused: list[Text] = []  # whose readers are waited for, and which gave up their slots
        self.news: list[Text] = []
        self.told = 0.0  # when
        self.is_urgent = False  # a text has begun or ended
        self.changed = threading.Condition()  # its worker's
        self.worker: Worker | None = None
        self.announce: Callable[[], object] = self.tell_readers
        self.written = metrics.tokens.labels(served.name, "written")
        self.read = metrics.tokens.labels(served.name, "read")
        metrics.waiting.labels(served.name).set_function(lambda: len(self.waiting))
        metrics.running.labels(served.name).set_function(lambda: len(self.running))
        self.first_token = metrics.first_token.labels(served.name)

    async def prepare(
        self, read: Callable[[], T], arrived: float, turn: CapacityLimiter | None = None
    ) -> T:
        """What `read` makes of a request, in a thread, in its turn. Raises `ApiError` for a full
        queue, or too late.
        """
        with self.changed:
            self._check_room(1)
            self.preparing += 1
        try:
            async with asyncio.timeout(arrived + self.limits.seconds - time.monotonic()):
                return await run_in_turn(read, turn or self.turn_of_reader)
        except TimeoutError:
            raise self.too_late() from None
        finally:
            self.preparing -= 1

    def submit(self, orders: Sequence[Order], news: asyncio.Event, arrived: float) -> list[Text]:
        """Have them all done, or none, until the request that `arrived` then is too old.

        Raises `ApiError` where the queue is full, or an id is none that the model has.
        """
        for order in orders:
            check_ids(order.ids, self.served.model.config.vocab_size, "prompt")
        texts = []
        for order in orders:
            pieces = Detokenizer(
                self.tokenizer, order.sampling.stop, order.context, after_space=order.spaced
            )
            texts.append(Text(order, pieces, (arrived, arrived + self.limits.seconds), news))
        with self.changed:
            self._check_room(len(texts))
            self.waiting.extend(texts)
            self.changed.notify()
        return texts

    def _check_room(self, count: int) -> None:
        """Raise `ApiError` where so many more are too many. Texts that wait for their readers do
        not count.
        """
        if self.worker and not self.worker.is_working:
            raise ApiError(503, "the models are not at work", code="not_working")
        there = len(self.waiting) + len(self.running) + self.preparing
        if there + count > self.limits.max_batch + self.limits.max_queue:
            raise ApiError(429, f"{there} texts are in work or wait: try again", code="queue_full")

    def too_late(self) -> ApiError:
        """The refusal of what took too long."""
        return ApiError(
            504, f"the answer took more than {self.limits.seconds:g} seconds", code="timeout"
        )

    @property
    def has_room(self) -> bool:
        """Whether another text can begin."""
        return len(self.running) < self.limits.max_batch

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
            self.names[token] = (
                token_to_text(self.tokenizer, token),
                token_to_bytes(self.tokenizer, token),
            )
        return self.names[token]

    def tell_readers(self) -> None:
        """In the readers' own loop: there is something to take."""
        news, self.news = self.news, []
        for text in news:
            text.news.set()

    def turn(self) -> bool:
        """Every text that can go on does so by a token, or is read a little further; False where
        there is none.
        """
        try:
            return self._take_turn()
        except Exception:
            logger.exception("%s: a turn failed", self.served.name)
            self.begin_again()
            return True

    def begin_again(self) -> None:
        """End all texts, for the server's own fault; what was kept of them is not relied on."""
        self.end_all(ApiError(500, "the model failed; the server's log says why", code="failed"))
        if len(self.slots.free) != self.limits.max_batch:
            self.slots = ContinuousBatch(self.served.model, self.limits.max_batch)

    def _take_turn(self) -> bool:
        self._sort_out()
        weighs = self._weigh_on()
        going = {
            text.slot: text
            for text in self.running
            if text.slot is not None and not text.is_waited_for
        }
        if not going and not weighs:
            self._tell(now=True)
            return False
        ready, logits = self.slots.advance([slot for slot in going if slot is not None])
        for slot, error in self.slots.failed.items():
            self._fail(going[slot], error)
        texts = [going[slot] for slot in ready]
        self.written.inc(len(texts))
        for row, (text, token) in enumerate(zip(texts, self._choose(logits, texts), strict=True)):
            try:
                self._go_on(text, token, logits, row)
            except Exception as error:
                self._fail(text, error)
        self._tell(now=self.is_urgent)
        return True

    def _choose(self, logits: Tensor, texts: Sequence[Text]) -> list[int | Exception]:
        """The next token of each; where there can be none, why."""
        try:
            return [
                *sample_each(
                    logits, [text.order.sampling for text in texts], [text.draws for text in texts]
                )
            ]
        except Exception as error:
            if len(texts) == 1:
                return [error]
        return [
            choice
            for row, text in enumerate(texts)
            for choice in self._choose(logits[row, None], [text])
        ]

    def _weigh_on(self) -> bool:
        """One of the prompts that are weighed, a part further; False where there is none."""
        text = next((text for text in self.running if text.weighing is not None), None)
        if text is None or text.weighing is None:
            return False
        self.running.append(
            self.running.pop(self.running.index(text))
        )  # the others have their turn first
        try:
            text.weighed += next(text.weighing)
        except StopIteration:
            self._end(text, Piece(choices=text.weighed, reason="length"))
        except Exception as error:
            self._fail(text, error)
        return True

    def _fail(self, text: Text, error: Exception) -> None:
        """End a text in whose turn something went wrong."""
        self._end(text, Piece(error=note_failure(self.served.name, error)))

    def _tell(self, now: bool) -> None:
        """Have readers told what there is for them, `now` or when it is time again."""
        if self.news and (now or time.monotonic() - self.told > TOGETHER):
            self.told, self.is_urgent = time.monotonic(), False
            self.announce()

    def _sort_out(self) -> None:
        """Let go of texts that nobody wants or whose time is over, and take in those that wait."""
        now = time.monotonic()
        for text in [*self.running, *self.paused, *self.waiting]:
            if not text.is_wanted:
                self._end(text, Piece())
            elif now > text.latest:
                self._end(text, Piece(error=self.too_late()))
            elif text.is_waited_for:
                text.is_waited_for = len(text.ready) >= BUFFER
        self._sort_paused()
        while self.waiting and (self.has_room or self._pause_one()):
            with self.changed:
                text = self.waiting.popleft()
                self.running.append(text)
            try:
                self._take_in(text)
            except Exception as error:
                self._fail(text, error)

    def _sort_paused(self) -> None:
        """Have those go on whose readers read; of too many the first ones are given up."""
        for text in [text for text in self.paused if not text.is_waited_for]:
            self.paused.remove(text)
            with self.changed:
                self.waiting.appendleft(text)
        for text in self.paused[: max(0, len(self.paused) - self.limits.max_queue)]:
            self._end(
                text,
                Piece(
                    error=ApiError(
                        408, "the answer was not read, and others wait", code="slow_reader"
                    )
                ),
            )

    def _pause_one(self) -> bool:
        """Free the slot of a text whose reader is waited for."""
        text = next(
            (text for text in self.running if text.is_waited_for and text.slot is not None), None
        )
        if text is None or text.slot is None:
            return False
        text.paused, text.slot = self.slots.pause(text.slot), None
        self.running.remove(text)
        self.paused.append(text)
        return True

    def _take_in(self, text: Text) -> None:
        order = text.order
        if text.paused is not None:
            text.slot, text.paused = self.slots.resume(text.paused), None
            return
        self.read.inc(len(order.ids))
        if order.weighs:
            text.weighing = weigh_prompt(self.served.model, order.ids, order.likeliest or 0)
        else:
            text.slot = self.slots.begin(order.ids, order.sampling.max_new_tokens)

    def _go_on(self, text: Text, token: int | Exception, logits: Tensor, row: int) -> None:
        if isinstance(token, Exception):
            raise token
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
        if text.choices and piece.error is None:
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
            for texts in (self.running, self.waiting, self.paused):
                if text in texts:
                    texts.remove(text)
        if text.slot is not None:
            self.slots.leave(text.slot)
            text.slot = None
        text.weighing = text.paused = None
        if text.is_wanted:
            if last.error is None and not text.order.weighs:
                last.text += text.pieces.finish()
                if text.pieces.stopped:
                    last.reason = "stop"
            self._give(text, last)

    def end_all(self, error: ApiError) -> None:
        """Let go of all texts, for this reason, whatever state they are in."""
        for text in [*self.running, *self.paused, *self.waiting]:
            with suppress(Exception):
                self._end(text, Piece(error=error))
        with suppress(RuntimeError):  # the readers' loop is closed
            self._tell(now=True)


def reserve_core() -> None:
    """Have models compute on all cores but one, which the readers need: threads that share out a
    step wait for one another many times in it, and would wait for a core each time. Many texts
    together are worth that core all the same.

    Before anything is computed, for what has helpers keeps them.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
