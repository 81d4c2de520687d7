"""Connections that say nothing, too many of them, and how a server ends."""

import json
import logging
import socket
import threading
import time

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)
pytest.importorskip("uvicorn", reason=reason)

from rung.serve import server  # noqa: E402
from rung.serve.app import build_app, open_port  # noqa: E402
from rung.serve.limits import Limits  # noqa: E402
from rung.serve.registry import ServedModel  # noqa: E402


class Serving:
    """A server of one model that never ends a text, in a thread."""

    def __init__(self, make_tiny, tokenizer):
        app = build_app(
            {"m": ServedModel("m", make_tiny("bigram"), tokenizer, {})}, Limits(max_tokens=10**6)
        )
        self.listener = open_port("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.server = server.Server(app, app.state.worker, 300.0)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()

    def connect(self, content=b""):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        connection.sendall(content)
        return connection

    def ask(self, **body):
        content = json.dumps({"model": "m", "prompt": "a", **body}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return self.connect(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)


@pytest.fixture
def serving(make_tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(
        "rung.serve.engine.sample_each", lambda logits, settings, draws: [65] * len(settings)
    )
    monkeypatch.setattr(server, "SHUTDOWN_SECONDS", 0.2)
    with Serving(make_tiny, tokenizer) as serving:
        yield serving


def is_closed(connection):
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_what_says_nothing_is_closed_and_what_is_answered_is_not(serving, monkeypatch):
    stream = serving.ask(max_tokens=10**6, stream=True)
    assert b"200 OK" in stream.recv(1000)
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    for said in (
        b"",
        b"GET /health HT",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\na",
    ):
        with serving.connect(said) as silent:
            while not is_closed(silent):
                pass
    time.sleep(0.5)
    assert stream.recv(1000)
    stream.close()


def test_a_newcomer_takes_the_place_of_who_was_silent_for_longest(serving, monkeypatch):
    monkeypatch.setattr(server, "find_max_connections", lambda: 8)
    monkeypatch.setattr(server, "IDLE_SECONDS", 1e6)  # none is closed for being silent alone
    silent = [serving.connect() for _ in range(30)]  # at once
    for connection in silent[:20]:
        assert is_closed(connection)
    for connection in silent[-7:]:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    assert httpx.get(f"http://127.0.0.1:{serving.port}/health", timeout=300).json() == {
        "status": "ok"
    }
    for connection in silent:
        connection.close()


def test_a_reader_that_takes_nothing_is_closed_in_the_end():
    now, closed = 1000.0, []

    class Transport:
        def get_write_buffer_size(self):
            return 70

        def abort(self):
            closed.append(now)

    connection = server.Connection.__new__(server.Connection)
    connection.transport, connection.cycle = (
        Transport(),
        type("Cycle", (), {"response_complete": False})(),
    )
    for now in (1000.0, 1200.0, 1299.0, 1301.0):
        connection.close_if_idle(now, 300.0)
    assert closed == [1301.0]


def test_a_piece_of_an_answer_does_not_wait_for_the_one_before(serving):
    with serving.ask(max_tokens=10**6, stream=True) as stream:
        assert stream.recv(1000)
        (connection,) = serving.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_stop_tells_streams_and_requests(serving, caplog):
    stream, plain = serving.ask(max_tokens=10**6, stream=True), serving.ask(max_tokens=10**6)
    begun = stream.recv(1000)
    assert b"200 OK" in begun
    serving.server.should_exit = True
    streamed, answered = (b"".join(iter(lambda c=c: c.recv(65536), b"")) for c in (stream, plain))
    event = streamed.split(b"data: ")[-1].split(b"\n")[0]
    assert json.loads(event)["error"]["code"] == "shutting_down"
    assert answered.startswith(b"HTTP/1.1 503") and b'"code": "shutting_down"' in answered
    serving.thread.join()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_second_signal_waits_for_nothing(make_tiny, tokenizer, monkeypatch):
    made = Serving(make_tiny, tokenizer).server
    ended = []
    monkeypatch.setattr(server.os, "_exit", ended.append)
    made.handle_exit(2, None)
    assert made.should_exit and not ended
    made.handle_exit(2, None)
    assert ended == [130]


def test_that_no_descriptor_is_left_is_said_once(make_tiny, tokenizer, caplog):
    made, told = Serving(make_tiny, tokenizer).server, []
    loop = type(
        "Loop", (), {"default_exception_handler": lambda self, context: told.append(context)}
    )()
    for _ in range(100):
        made._log_exception(loop, {"message": "socket.accept() out of system resource"})
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "no descriptors are left for new connections"
    ]
    made._log_exception(loop, {"message": "another"})
    assert told == [{"message": "another"}]
