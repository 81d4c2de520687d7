"""A served model at work: texts wait in a bounded queue and share the steps of one batch.

The deltas of a text wait where its reader takes them. A text whose reader falls
`MAX_UNREAD_DELTAS` behind takes no step until the reader goes on, and gives up its slot where
another text waits for one. An error ends only the text in whose turn it comes up.
"""

import copy
import logging
import threading
import time
from asyncio import Event, timeout
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from anyio import CapacityLimiter
from torch import Tensor

from rung.generation.batching import ContinuousBatch
from rung.generation.detokenize import Detokenizer, token_to_bytes, token_to_text
from rung.generation.sampling import sample_each
from rung.serve.api_errors import ApiError, check_token_ids, log_failure
from rung.serve.limits import Limits
from rung.serve.logprobs import SCORING_CHUNK, score_prompt, score_token
from rung.serve.metrics import Metrics
from rung.serve.registry import ServedModel, fingerprint_model
from rung.serve.sequences import MAX_UNREAD_DELTAS, Delta, GenerationRequest, SequenceState
from rung.serve.threads import run_in_thread

logger = logging.getLogger(__name__)

# Seconds of news that readers are told at once: each time costs a core that the model needs.
NOTIFY_SECONDS = 0.016
# The longest that a step waits for readers to be told of a text's first or last piece.
TURN_SECONDS = 0.002
# PyTorch multiplies fewer rows than these in about the same time.
MIN_SCORING_CHUNK = 32

T = TypeVar("T")


class Engine:
    """A served model and the texts that it generates, stepped by a `Worker`.

    `announce` is called when readers have news.
    """

    def __init__(self, served: ServedModel, limits: Limits, metrics: Metrics) -> None:
        self.served, self.limits, self.metrics = served, limits, metrics
        # A copy for the worker, whose settings nobody changes, and one for the threads that read
        # requests, one after another.
        self.tokenizer = copy.deepcopy(served.tokenizer)
        self.prompt_tokenizer = copy.deepcopy(served.tokenizer)
        self.prompt_limiter = CapacityLimiter(1)
        self.preparing = 0  # requests
        self.fingerprint = fingerprint_model(served)
        self.token_names: dict[int, tuple[str, bytes | None]] = {}
        self.batch = ContinuousBatch(served.model, limits.max_batch)
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.paused: list[SequenceState] = []  # gave up their slots, their readers being slow
        self.with_news: list[SequenceState] = []
        self.last_notified = 0.0
        self.is_urgent = False  # a text has begun or ended
        self.announce: Callable[[], object] = self.notify_readers
        self.told = threading.Event()  # whether readers know of all news
        self.attach(threading.Condition(), lambda: True)
        self.generated = metrics.tokens.labels(served.name, "written")
        self.read = metrics.tokens.labels(served.name, "read")
        metrics.waiting.labels(served.name).set_function(lambda: len(self.waiting))
        metrics.running.labels(served.name).set_function(lambda: len(self.running))
        self.first_token = metrics.first_token.labels(served.name)

    def attach(self, changed: threading.Condition, is_working: Callable[[], bool]) -> None:
        """Join a worker: `changed` wakes it, `is_working` says whether it is well."""
        self.changed, self.is_working = changed, is_working

    async def prepare(
        self, read: Callable[[], T], arrived: float, limiter: CapacityLimiter | None = None
    ) -> T:
        """Run `read`, which prepares a request, in a thread, and return its result.

        Raises `ApiError` where the queue is full or the request is too old.
        """
        with self.changed:
            self._check_room(1)
            self.preparing += 1
        try:
            async with timeout(arrived + self.limits.seconds - time.monotonic()):
                return await run_in_thread(read, limiter or self.prompt_limiter)
        except TimeoutError:
            raise self.timeout_error() from None
        finally:
            self.preparing -= 1

    def submit(
        self, requests: Sequence[GenerationRequest], news: Event, arrived: float
    ) -> list[SequenceState]:
        """Queue all requests or none; they end at the latest when `limits.seconds` have passed.

        Raises `ApiError` where the queue is full, or for an id that the model does not have.
        """
        for request in requests:
            check_token_ids(request.ids, self.served.model.config.vocab_size, "prompt")
        times = arrived, arrived + self.limits.seconds
        texts = [
            SequenceState(
                request,
                Detokenizer(
                    self.tokenizer,
                    request.sampling.stop,
                    request.context,
                    after_space=request.after_space,
                ),
                times,
                news,
            )
            for request in requests
        ]
        with self.changed:
            self._check_room(len(texts))
            self.waiting.extend(texts)
            self.changed.notify()
        return texts

    def _check_room(self, count: int) -> None:
        """Raise `ApiError` where `count` more texts are too many; paused ones do not count."""
        if not self.is_working():
            raise ApiError(503, "the models are not at work", code="not_working")
        present = len(self.waiting) + len(self.running) + self.preparing
        if present + count > self.limits.max_batch + self.limits.max_queue:
            raise ApiError(
                429, f"{present} texts are in work or wait: try again", code="queue_full"
            )

    def timeout_error(self) -> ApiError:
        """Make the error of an answer that took too long."""
        return ApiError(
            504, f"the answer took more than {self.limits.seconds:g} seconds", code="timeout"
        )

    @property
    def has_room(self) -> bool:
        """Whether another text can begin."""
        return len(self.running) < self.limits.max_batch

    def cancel(self, texts: Sequence[SequenceState]) -> None:
        """End texts that nobody reads any more."""
        for text in texts:
            text.is_wanted = False
        self.wake()

    def wake(self) -> None:
        """Wake the worker, for it to see what has changed."""
        with self.changed:
            self.changed.notify()

    def name_token(self, token: int) -> tuple[str, bytes | None]:
        """Return a token's text and bytes; no bytes for a special token."""
        if token not in self.token_names:
            self.token_names[token] = (
                token_to_text(self.tokenizer, token),
                token_to_bytes(self.tokenizer, token),
            )
        return self.token_names[token]

    def notify_readers(self) -> None:
        """Tell the readers, in their own event loop, that there are deltas to take."""
        texts, self.with_news = self.with_news, []
        for text in texts:
            text.news.set()
        self.told.set()

    def step(self) -> bool:
        """Give every running text a token, or read its prompt further.

        Return False where there is nothing to do.
        """
        try:
            return self._step()
        except Exception:
            logger.exception("%s: a turn failed", self.served.name)
            self.reset()
            return True

    def reset(self) -> None:
        """End all texts for a fault of the server, and make the batch anew if some are stuck."""
        self.end_all(ApiError(500, "the model failed; the server's log says why", code="failed"))
        if len(self.batch.free_slots) != self.limits.max_batch:
            self.batch = ContinuousBatch(self.served.model, self.limits.max_batch)

    def _step(self) -> bool:
        self._schedule()
        has_scored = self._score_prompts()
        active = {
            text.slot: text
            for text in self.running
            if text.slot is not None and not text.awaits_reader
        }
        if not active and not has_scored:
            self._notify(now=True)
            return False
        ready, logits = self.batch.step([slot for slot in active if slot is not None])
        for slot, error in self.batch.failed.items():
            self._fail(active[slot], error)
        texts = [active[slot] for slot in ready]
        self.generated.inc(len(texts))
        for row, (text, token) in enumerate(zip(texts, self._sample(logits, texts), strict=True)):
            try:
                self._append(text, token, logits, row)
            except Exception as error:
                self._fail(text, error)
        self._notify(now=self.is_urgent)
        return True

    def _sample(self, logits: Tensor, texts: Sequence[SequenceState]) -> list[int | Exception]:
        """Sample the next token of each text; an error in place of a token that cannot be."""
        try:
            settings = [text.request.sampling for text in texts]
            return [*sample_each(logits, settings, [text.random for text in texts])]
        except Exception as error:
            if len(texts) == 1:
                return [error]
        return [
            token
            for row, text in enumerate(texts)
            for token in self._sample(logits[row, None], [text])
        ]

    def _score_prompts(self) -> bool:
        """Score the next chunk of one prompt; return False where no prompt is to be scored."""
        text = next((text for text in self.running if text.scoring is not None), None)
        if text is None or text.scoring is None:
            return False
        # Behind the others, which have their turn first.
        self.running.append(self.running.pop(self.running.index(text)))
        try:
            text.scored += next(text.scoring)
        except StopIteration:
            self._end(text, Delta(tokens=text.scored, finish_reason="length"))
        except Exception as error:
            self._fail(text, error)
        return True

    def _limit_scoring(self) -> int:
        """Limit the tokens that are scored between two steps, where others write."""
        writes = any(text.slot is not None for text in self.running)
        return max(MIN_SCORING_CHUNK, self.batch.shared_chunk) if writes else SCORING_CHUNK

    def _fail(self, text: SequenceState, error: Exception) -> None:
        """End a text in whose turn an error came up."""
        self._end(text, Delta(error=log_failure(self.served.name, error)))

    def _notify(self, now: bool) -> None:
        """Have readers told of their news, `now` or when it is time again."""
        if self.with_news and (now or time.monotonic() - self.last_notified > NOTIFY_SECONDS):
            is_urgent, self.last_notified, self.is_urgent = self.is_urgent, time.monotonic(), False
            self.told.clear()
            self.announce()
            if is_urgent:
                # The readers' thread has its turn before the next step takes all cores.
                self.told.wait(TURN_SECONDS)

    def _schedule(self) -> None:
        """End texts that are unwanted or too old, and start those that wait while there is room."""
        now = time.monotonic()
        for text in [*self.running, *self.paused, *self.waiting]:
            if not text.is_wanted:
                self._end(text, Delta())
            elif now > text.deadline:
                self._end(text, Delta(error=self.timeout_error()))
            elif text.awaits_reader:
                text.awaits_reader = len(text.deltas) >= MAX_UNREAD_DELTAS
        self._schedule_paused()
        while self.waiting and (self.has_room or self._pause_one()):
            with self.changed:
                text = self.waiting.popleft()
                self.running.append(text)
            try:
                self._start(text)
            except Exception as error:
                self._fail(text, error)

    def _schedule_paused(self) -> None:
        """Requeue paused texts whose readers read again; end the oldest of too many others."""
        for text in [text for text in self.paused if not text.awaits_reader]:
            self.paused.remove(text)
            with self.changed:
                self.waiting.appendleft(text)
        for text in self.paused[: max(0, len(self.paused) - self.limits.max_queue)]:
            error = ApiError(408, "the answer was not read, and others wait", code="slow_reader")
            self._end(text, Delta(error=error))

    def _pause_one(self) -> bool:
        """Free the slot of a text that waits for its reader; return False where there is none."""
        text = next(
            (text for text in self.running if text.awaits_reader and text.slot is not None), None
        )
        if text is None or text.slot is None:
            return False
        text.paused, text.slot = self.batch.pause(text.slot), None
        self.running.remove(text)
        self.paused.append(text)
        return True

    def _start(self, text: SequenceState) -> None:
        request = text.request
        if text.paused is not None:
            text.slot, text.paused = self.batch.resume(text.paused), None
            return
        self.read.inc(len(request.ids))
        if request.scores_prompt:
            text.scoring = score_prompt(
                self.served.model, request.ids, request.top_logprobs or 0, self._limit_scoring
            )
        else:
            text.slot = self.batch.add(request.ids, request.sampling.max_new_tokens)

    def _append(
        self, text: SequenceState, token: int | Exception, logits: Tensor, row: int
    ) -> None:
        """Append a sampled token to its text; raise the error that stands in its place."""
        if isinstance(token, Exception):
            raise token
        request = text.request
        text.token_count += 1
        if text.token_count == 1:
            self.first_token.observe(time.monotonic() - text.arrived)
        if token in request.stop_ids:
            self._end(text, Delta(finish_reason="stop"))
            return
        scored = None
        if request.top_logprobs is not None:
            scored = score_token(logits[row], token, request.top_logprobs)
        new = text.add(token, scored)
        is_stopped = text.detokenizer.stopped
        if is_stopped or text.token_count == request.sampling.max_new_tokens:
            self._end(text, Delta(new, finish_reason="stop" if is_stopped else "length"))
            return
        if text.slot is not None:
            self.batch.append(text.slot, token)
        if new:
            self._emit(text, Delta(new))

    def _emit(self, text: SequenceState, delta: Delta) -> None:
        """Put a delta where its reader takes it."""
        if text.pending and delta.error is None:
            delta.tokens = text.take_tokens(delta.is_last)
        text.deltas.append(delta)
        if streams := text.request.streams:
            text.awaits_reader = len(text.deltas) >= MAX_UNREAD_DELTAS
        if streams or delta.is_last:
            self.with_news.append(text)
            self.is_urgent |= delta.is_last or not text.has_begun
            text.has_begun = True

    def _end(self, text: SequenceState, last: Delta) -> None:
        """Emit the last delta of a text and free its slot."""
        with self.changed:
            for texts in (self.running, self.waiting, self.paused):
                if text in texts:
                    texts.remove(text)
        if text.slot is not None:
            self.batch.remove(text.slot)
            text.slot = None
        text.scoring = text.paused = None
        if text.is_wanted:
            if last.error is None and not text.request.scores_prompt:
                last.text += text.detokenizer.finish()
                if text.detokenizer.stopped:
                    last.finish_reason = "stop"
            self._emit(text, last)

    def end_all(self, error: ApiError) -> None:
        """End all texts with this error, whatever state they are in."""
        for text in [*self.running, *self.paused, *self.waiting]:
            with suppress(Exception):
                self._end(text, Delta(error=error))
        # The readers' event loop may be closed.
        with suppress(RuntimeError):
            self._notify(now=True)
