"""Minutes of a server among clients of all kinds: none that asks properly is lost, and in the end
all is as before.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import hear_ctrl_c

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from rung import runs  # noqa: E402

SECONDS = float(os.environ.get("RUNG_SOAK_SECONDS", "300"))
CLIENTS = {
    "whole": 20,
    "streamed": 20,
    "weighed": 4,
    "long": 1,
    "never reads": 7,
    "breaks off": 6,
    "nonsense": 6,
}
WINDOW = 1024
MORE_MEMORY = 1.25, 100  # what it may have at the end: times what it had when warm, and MiB
NONSENSE = (
    b"GET / HT",
    b"\x00" * 400,
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
    b"{}",
)


class Soak:
    """A server in a process of its own, and what its clients saw."""

    def __init__(self, process, address, seconds):
        self.process, self.address, self.seconds = process, address, seconds
        self.port = int(address.rsplit(":", 1)[1])
        self.faults, self.answers, self.events = [], 0, []
        self.is_over = self.is_stopped = False

    def memory(self):
        """MiB that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    async def ask_properly(self, client, kind, number):
        """One request, whose answer must come in time."""
        body = {
            "model": "llama3",
            "prompt": "the cat",
            "max_tokens": 5 + number % 40,
            "seed": number,
        }
        if kind == "weighed":
            body |= {
                "prompt": "the cat sat on " * 100,
                "echo": True,
                "logprobs": 2,
                "max_tokens": 0,
            }
        if kind == "long":
            body |= {"prompt": [0] + [5 + number % 50] * (WINDOW - 10), "max_tokens": 5}
        body["stream"] = kind == "streamed"
        begun = time.monotonic()
        answer = await client.post("/v1/completions", json=body)
        took, end = time.monotonic() - begun, answer.text.strip().splitlines()[-1]
        is_whole = end == "data: [DONE]" if body["stream"] else bool(answer.json().get("choices"))
        if answer.status_code != 200 or not is_whole or took > self.seconds + 5:
            self.faults.append((kind, answer.status_code, round(took, 1), end[:200]))
        self.answers += 1

    async def misbehave(self, kind, number):
        """Ask for much and read none of it, or a little, or ask nothing that makes sense."""
        body = {
            "model": "llama3",
            "prompt": "the",
            "max_tokens": 4000,
            "stream": True,
            "logprobs": 5,
            "seed": number,
        }
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
            f"{len(content)}\r\n"
        )
        asked = f"{head}Content-Type: application/json\r\n\r\n".encode() + content
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=4096)
        try:
            writer.write(NONSENSE[number % len(NONSENSE)] if kind == "nonsense" else asked)
            await writer.drain()
            if kind == "breaks off":
                await reader.read(2000)
            elif kind == "never reads":
                await self.wait(30)
        finally:
            writer.transport.abort()

    async def wait(self, seconds):
        until = time.monotonic() + seconds
        while not self.is_over and time.monotonic() < until:
            await asyncio.sleep(0.1)

    async def be_client(self, client, kind, number):
        while not self.is_over:
            number += 1000
            try:
                if kind in ("never reads", "breaks off", "nonsense"):
                    await self.misbehave(kind, number)
                    await asyncio.sleep(0.1)
                else:
                    await self.ask_properly(client, kind, number)
            except (OSError, httpx.HTTPError) as error:
                if kind not in ("never reads", "breaks off", "nonsense"):
                    self.faults.append((kind, repr(error)))

    async def watch(self, client):
        """It is well all the time, and says so."""
        while not self.is_over:
            answer = await client.get("/health")
            if answer.json() != {"status": "ok"}:
                self.faults.append(("health", answer.text))
            await asyncio.sleep(0.5)

    async def run(self, seconds):
        """All clients for so long."""
        self.is_over = False
        kinds = [kind for kind, count in CLIENTS.items() for _ in range(count)]
        assert len(kinds) == 64
        random.Random(0).shuffle(kinds)
        async with httpx.AsyncClient(
            base_url=self.address,
            timeout=2 * self.seconds + 60,
            limits=httpx.Limits(max_connections=None),
        ) as client:
            tasks = [self.be_client(client, kind, number) for number, kind in enumerate(kinds)]
            work = asyncio.gather(*tasks, self.watch(client))
            await asyncio.wait({work}, timeout=seconds)
            self.is_over = True
            await work
            await self.come_to_rest(client)

    async def come_to_rest(self, client):
        """Until nothing is left in work."""
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            lines = (await client.get("/metrics")).text.splitlines()
            left = [
                float(line.split()[-1])
                for line in lines
                if re.match(r"rung_(running|waiting)_texts\{", line)
            ]
            if not any(left):
                return
            await asyncio.sleep(0.2)
        self.faults.append(("work is left", left))

    async def stop(self, count=8):
        """Stop it while streams are read: the last event that each of them has."""

        async def read(client, number):
            body = {
                "model": "llama3",
                "prompt": "the",
                "max_tokens": 4000,
                "stream": True,
                "seed": number,
            }
            async with client.stream("POST", "/v1/completions", json=body) as response:
                begun.release()
                self.events.append([line async for line in response.aiter_lines() if line][-1])

        begun = asyncio.Semaphore(0)
        async with httpx.AsyncClient(base_url=self.address, timeout=self.seconds) as client:
            work = asyncio.gather(*(read(client, number) for number in range(count)))
            for _ in range(count):
                await begun.acquire()
            self.process.send_signal(signal.SIGINT)
            await work


@pytest.fixture
def soak(make_tiny, tokenizer, tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("reads what memory a process holds from /proc, as Linux has it")
    model = make_tiny("llama3", hidden_size=64, max_position_embeddings=WINDOW)
    runs.save_model(runs.make_folder(tmp_path / "llama3"), model, tokenizer)
    seconds = size_timeout(model)
    command = [sys.executable, "-m", "rung", "serve", str(tmp_path / "llama3"), "--port", "0"]
    command += ["--max-batch", "8", "--max-queue", "100", "--timeout", str(seconds)]
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stderr=log, preexec_fn=hear_ctrl_c)
        try:
            while (
                found := re.search(r"Open +(\S+)", (tmp_path / "log").read_text(encoding="utf-8"))
            ) is None:
                assert process.poll() is None
                time.sleep(0.1)
            yield Soak(process, found[1], seconds)
        finally:
            process.kill()
            process.wait()


def size_timeout(model):
    """Seconds that are enough for 64 clients on this machine, as busy as it is: what reading a
    window takes, 200 times; no less than two minutes.
    """
    import torch

    begun = time.monotonic()
    with torch.inference_mode():
        for _ in range(3):
            model(torch.zeros(1, WINDOW - 10, dtype=torch.long))
    return max(120, round(200 * (time.monotonic() - begun) / 3))


@pytest.mark.slow
def test_a_server_among_all_kinds_of_clients(soak, tmp_path):
    """`RUNG_SOAK_SECONDS` says for how long."""
    asyncio.run(soak.run(SECONDS / 4))
    warm, (times, more) = soak.memory(), MORE_MEMORY
    asyncio.run(soak.run(SECONDS))
    assert not soak.faults and soak.answers > 64
    assert soak.memory() < times * warm + more
    asyncio.run(soak.stop())
    assert len(soak.events) == 8
    for event in soak.events:
        assert (
            event == "data: [DONE]"
            or json.loads(event.removeprefix("data: "))["error"]["code"] == "shutting_down"
        )
    assert soak.process.wait(timeout=soak.seconds) == 130
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "Traceback" not in log and len(log.splitlines()) < 20
