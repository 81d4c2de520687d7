"""Texts under attack, turn by turn: a fault, a slow reader, a long prompt are those of one text."""

import asyncio
import threading
import time

import pytest
import torch
from anyio import CapacityLimiter

from tests.conftest import TINY, overflow

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)

from rung.evaluation.likelihood import compute_nll  # noqa: E402
from rung.generation import batching  # noqa: E402
from rung.generation.sampling import Sampling  # noqa: E402
from rung.serve import engine as engine_room  # noqa: E402
from rung.serve import logprobs  # noqa: E402
from rung.serve.api_errors import ApiError  # noqa: E402
from rung.serve.engine import MIN_SCORING_CHUNK, Engine  # noqa: E402
from rung.serve.limits import Limits  # noqa: E402
from rung.serve.logprobs import score_prompt  # noqa: E402
from rung.serve.metrics import Metrics  # noqa: E402
from rung.serve.registry import ServedModel  # noqa: E402
from rung.serve.sequences import MAX_UNREAD_DELTAS, Delta, GenerationRequest  # noqa: E402
from rung.serve.threads import run_in_thread  # noqa: E402
from rung.serve.worker import Worker  # noqa: E402


@pytest.fixture
def make_engine(make_tiny, tokenizer):
    def make(name="llama3", limits=None, **settings):
        return Engine(
            ServedModel(name, make_tiny(name, **settings), tokenizer, {}),
            Limits(**limits or {}),
            Metrics(),
        )

    return make


def request(ids=(0, 5, 7), tokens=20, **options):
    sampling = Sampling(max_new_tokens=tokens, temperature=0.0, top_p=1.0)
    return GenerationRequest(ids=list(ids), sampling=sampling, stop_ids=frozenset(), **options)


def submit(engine, *requests, arrived=None):
    return engine.submit(
        requests, asyncio.Event(), time.monotonic() if arrived is None else arrived
    )


def take_turns(engine, count=1):
    with torch.inference_mode():
        return [engine.step() for _ in range(count)]


def finish(engine, text, most=2000):
    """All of it, read as it comes."""
    whole = Delta()
    with torch.inference_mode():
        for _ in range(most):
            engine.step()
            if (delta := text.take()) is not None:
                whole = whole.join(delta)
            if whole.is_last:
                return whole
    raise AssertionError("it never ended")


def test_an_id_that_the_model_has_not_is_refused_and_ends_nothing_else(make_engine):
    engine = make_engine()
    (text,) = submit(engine, request())
    with pytest.raises(ApiError, match="the token 100000 is none of this model"):
        submit(engine, request([0, 100_000]))
    engine.served.model.config.vocab_size, size = 2**20, engine.served.model.config.vocab_size
    (wrong,) = submit(engine, request([0, 100_000]))  # as if nobody had looked
    engine.served.model.config.vocab_size = size
    assert finish(engine, wrong).error.status_code == 500
    assert finish(engine, text).finish_reason == "length"


def test_a_fault_in_the_turn_of_one_text_ends_that_text_alone(make_engine, monkeypatch):
    engine = make_engine()
    wanted = finish(engine, submit(engine, request())[0])
    good, bad, worse = submit(engine, request(), request(), request())
    monkeypatch.setattr(bad.detokenizer, "add", lambda token: 1 / 0)
    monkeypatch.setattr(worse.random, "draw", lambda: 1 / 0)
    worse.request = request()
    object.__setattr__(worse.request, "sampling", Sampling(temperature=1.0))
    assert finish(engine, good) == wanted
    for text in (bad, worse):
        assert text.take().error.code == "failed"
    assert len(engine.batch.free_slots) == engine.limits.max_batch and not engine.running


def test_what_is_no_number_ends_its_text_alone_and_is_said(make_engine, monkeypatch):
    engine = make_engine()
    wanted = finish(engine, submit(engine, request())[0])
    good, bad = submit(engine, request(), request())
    advance = engine.batch.step

    def spoil(slots):
        ready, logits = advance(slots)
        for row, slot in enumerate(ready):
            if slot == bad.slot:
                logits[row] = float("nan")
        return ready, logits

    monkeypatch.setattr(engine.batch, "step", spoil)
    assert finish(engine, good) == wanted
    assert bad.take().error.detail.startswith(
        "the model computes nan in place of a number: its weights are too large"
    )


def test_a_prompt_is_not_weighed_by_what_is_no_number(make_engine):
    engine = make_engine(tie_word_embeddings=False)
    overflow(engine.served.model)
    (text,) = submit(engine, request(scores_prompt=True, top_logprobs=2))
    assert finish(engine, text).error.detail.startswith("the model computes ")


@pytest.mark.parametrize("where", ["batch", "worker"])
def test_a_worker_that_fails_begins_again(where, make_engine, monkeypatch):
    engine = make_engine()

    async def run():
        worker = Worker([engine])
        kept = []

        def fail(*_):
            monkeypatch.undo()
            kept.append(engine.batch)
            raise (RuntimeError if where == "batch" else SystemExit)("out of order")

        worker.start(asyncio.get_running_loop())
        target = (engine.batch, "step") if where == "batch" else (engine, "step")
        if where == "worker":
            monkeypatch.setattr("rung.serve.worker.POLL_SECONDS", 0.01)
        monkeypatch.setattr(*target, fail)
        try:
            (text,) = submit(engine, request(tokens=10_000))
            await asyncio.wait_for(text.news.wait(), 60)
            assert text.take().error.code == "failed" and kept
            (text,) = submit(engine, request())
            await asyncio.wait_for(text.news.wait(), 60)
            assert text.take().finish_reason == "length" and worker.is_working
        finally:
            await asyncio.to_thread(worker.stop)
        assert not worker.is_working
        with pytest.raises(ApiError) as refused:
            submit(engine, request())
        assert refused.value.status_code == 503

    asyncio.run(run())


def test_readers_hear_of_a_beginning_and_an_end_before_the_next_turn(make_engine, monkeypatch):
    """A turn that begins at once would keep the event loop's thread from a core."""
    monkeypatch.setattr(engine_room, "TURN_SECONDS", 60.0)
    engine = make_engine()

    def announce_later():
        threading.Timer(0.01, engine.notify_readers).start()

    engine.announce = announce_later
    (text,) = submit(engine, request(tokens=2, streams=True))
    for _ in range(2):
        take_turns(engine)
        assert text.news.is_set()
        text.news.clear()
    assert text.take().is_last


def test_a_turn_that_does_not_end_is_no_work(make_engine):
    engine = make_engine(limits={"seconds": 100.0})
    worker = Worker([engine])
    submit(engine, request()) if worker.is_working else engine.running.append(object())
    worker.thread = type("Thread", (), {"is_alive": lambda self: True})()
    worker.last_round = time.monotonic()
    assert worker.is_working
    worker.last_round -= 101
    assert not worker.is_working
    engine.running.clear()
    assert worker.is_working  # it sleeps


@pytest.mark.parametrize("name", ["llama3", "rnn"])
def test_a_reader_that_does_not_read_gives_up_its_slot(name, make_engine):
    engine = make_engine(name, {"max_batch": 1})
    wanted = finish(engine, submit(engine, request(tokens=3 * MAX_UNREAD_DELTAS))[0])
    (slow,) = submit(engine, request(tokens=3 * MAX_UNREAD_DELTAS, streams=True))
    while not slow.awaits_reader:
        take_turns(engine)
    assert slow.slot is not None and take_turns(engine) == [False]  # nobody wants its slot
    for _ in range(3):
        (other,) = submit(engine, request())
        assert finish(engine, other).finish_reason == "length"
        assert engine.paused == [slow] and slow.slot is None
    found = finish(engine, slow)
    assert (found.text, found.finish_reason) == (wanted.text, "length")
    assert not engine.paused and not engine.running and len(engine.batch.free_slots) == 1


def test_of_too_many_readers_that_do_not_read_the_first_are_given_up(make_engine):
    engine = make_engine("bigram", {"max_batch": 1, "max_queue": 1})
    ended = []
    for _ in range(4):
        (slow,) = submit(engine, request(tokens=2 * MAX_UNREAD_DELTAS, streams=True))
        while not slow.awaits_reader:
            take_turns(engine)
        ended.append(slow)
    (other,) = submit(engine, request())
    assert finish(engine, other).finish_reason == "length"
    errors = [text.deltas[-1].error for text in ended]
    assert [error and error.code for error in errors] == ["slow_reader"] * 3 + [None]


def test_the_clock_starts_when_the_request_arrives(make_engine):
    engine = make_engine(limits={"seconds": 50.0})
    (text,) = submit(engine, request(), arrived=time.monotonic() - 51)
    assert finish(engine, text).error.code == "timeout"

    async def prepare():
        return await engine.prepare(lambda: 7, time.monotonic() - 51)

    with pytest.raises(ApiError, match="more than 50 seconds"):
        asyncio.run(prepare())


def test_what_is_given_up_ends_at_its_next_operation_and_keeps_its_turn_until_then():
    begun, goes_on, done = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        goes_on.wait()
        try:
            with torch.no_grad():
                return [torch.ones(1) for _ in iter(int, 1)]
        finally:
            done.append("given up")
            done.append(torch.is_grad_enabled())

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: done.append(context))
        turn = CapacityLimiter(1)
        first = asyncio.create_task(run_in_thread(work, turn))
        await asyncio.to_thread(begun.wait)
        waits = asyncio.create_task(run_in_thread(lambda: done.append("waits"), turn))
        second = asyncio.create_task(run_in_thread(lambda: done.append("second"), turn))
        await asyncio.sleep(0)
        for task in (first, waits):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not done and turn.borrowed_tokens == 1
        goes_on.set()
        await asyncio.wait_for(second, 300)
        assert done == ["given up", True, "second"]

    asyncio.run(run())


def test_what_is_prepared_and_weighed_is_admitted(make_engine):
    engine = make_engine(limits={"max_batch": 1, "max_queue": 2})
    submit(engine, *[request(scores_prompt=True, top_logprobs=0)] * 3)
    for attempt in (
        lambda: submit(engine, request()),
        lambda: asyncio.run(engine.prepare(int, time.monotonic())),
    ):
        with pytest.raises(ApiError) as refused:
            attempt()
        assert refused.value.code == "queue_full"


def test_prompts_are_weighed_in_turns_and_given_up_when_nobody_wants_them(make_engine, monkeypatch):
    monkeypatch.setattr(logprobs, "SCORING_CHUNK", 4)
    engine = make_engine("rnn")
    long, gone, text = submit(
        engine,
        request([5] * 200, scores_prompt=True, top_logprobs=2),
        request([5] * 200, scores_prompt=True, top_logprobs=0),
        request(tokens=30),
    )
    take_turns(engine, 4)
    engine.cancel([gone])
    assert finish(engine, text, most=40).finish_reason == "length"
    assert not long.deltas and gone not in engine.running
    found = finish(engine, long)
    assert [scored.token for scored in found.tokens] == [5] * 199
    assert found.finish_reason == "length" and len(found.tokens[0].top_logprobs) == 2


def test_a_prompt_is_weighed_in_shorter_parts_while_others_write(make_engine):
    engine = make_engine("llama3")
    engine.batch.last_chunk = 8, 1.0
    assert engine._limit_scoring() == logprobs.SCORING_CHUNK
    text, long = submit(
        engine, request(tokens=30), request([5] * 64, scores_prompt=True, top_logprobs=0)
    )
    take_turns(engine)
    assert engine._limit_scoring() == MIN_SCORING_CHUNK
    assert (text.token_count, len(long.scored)) == (1, MIN_SCORING_CHUNK)
    assert [scored.token for scored in finish(engine, long).tokens] == [5] * 63
    assert finish(engine, text, most=40).finish_reason == "length"


@pytest.mark.parametrize("name", TINY)
def test_a_prompt_is_weighed_as_the_ruler_reads_it(name, make_tiny, tokenizer, monkeypatch):
    """Longer than the window, and in parts that end anywhere."""
    monkeypatch.setattr(logprobs, "SCORING_CHUNK", 7)
    model = make_tiny(name)
    ids = [0, *tokenizer("the cat sat on a log. " * 30, add_special_tokens=False).input_ids]
    assert len(ids) > 2 * 64
    with torch.inference_mode():
        found = [scored for part in score_prompt(model, ids, 3) for scored in part]
        wanted = compute_nll(model, [ids])[0]
    assert [scored.token for scored in found] == ids[1:]
    torch.testing.assert_close(
        -torch.tensor([scored.logprob for scored in found]), wanted, atol=1e-4, rtol=1e-4
    )
    assert all(scored.top_logprobs[0][1] >= scored.logprob for scored in found)


def test_long_prompts_hold_no_short_one(make_engine, monkeypatch):
    monkeypatch.setattr(batching, "PREFILL_CHUNK", 8)
    engine = make_engine("rnn")
    submit(engine, *[request([5] * 400, tokens=1)] * 15)
    take_turns(engine, 3)
    (short,) = submit(engine, request(tokens=5))
    take_turns(engine, 8)
    assert short.token_count == 5
