"""Measure the server: texts that share a model's steps beside one alone, and memory under load.

The load lasts a minute. RUN names runs. Left out, models with random weights are served, of the
size and shape that five minutes of `rung climb` make on two cores. The numbers of texts take turns,
and the best of some rounds of each counts. `engine` is the engine and its queue, each text streamed
to a reader, as pieces of text. `HTTP` is server-sent events through uvicorn, to a client that is a
process of its own, on the same cores.

    python benchmarks/serve/serve.py [RUN ...] > benchmarks/serve/serve.txt
"""

import argparse
import asyncio
import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import httpx
import torch
import transformers

from rung.data.corpus import load_corpus
from rung.data.tokenizer_training import build_tokenizer
from rung.device import describe_device
from rung.generation.sampling import Sampling
from rung.models import build_model, count_parameters, make_config
from rung.serve.app import build_app, open_port
from rung.serve.engine import Engine
from rung.serve.limits import Limits
from rung.serve.metrics import Metrics
from rung.serve.registry import ServedModel, load_served_models
from rung.serve.sequences import GenerationRequest
from rung.serve.server import Server
from rung.serve.worker import Worker, reserve_core

SHAPES = {  # as README's climb made them
    "llama3": {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 352,
    },
    "gpt2": {"hidden_size": 128, "num_attention_heads": 2},
}
ROUNDS = 5
NEW = 200  # tokens
TEXTS = (1, 2, 4, 8, 16)
SOAK_STREAMS = 64


def make_served(name, tokenizer):
    torch.manual_seed(0)
    settings = {**SHAPES[name], "num_hidden_layers": 4, "max_position_embeddings": 256}
    model = build_model(name, make_config(name, tokenizer, settings)).eval()
    return ServedModel(name, model, tokenizer, {})


def make_shapes():
    tokenizer = build_tokenizer("bpe", load_corpus("python-docs").sample_train(1), 1024)
    return {name: make_served(name, tokenizer) for name in SHAPES}


async def read_all(text):
    """As a reader of the stream does: whatever there is, whenever there is something."""
    while True:
        await text.news.wait()
        text.news.clear()
        delta = text.take()
        if delta is not None and delta.is_last:
            return


async def time_engine(engine, count):
    """Tokens a second of `count` texts."""
    requests = [
        GenerationRequest(
            ids=list(range(3, 19)),
            sampling=Sampling(max_new_tokens=NEW, temperature=0.8, top_p=0.95, seed=seed),
            stop_ids=frozenset(),
            streams=True,
        )
        for seed in range(count)
    ]
    started = time.perf_counter()
    texts = [engine.submit([request], asyncio.Event(), time.monotonic())[0] for request in requests]
    await asyncio.gather(*map(read_all, texts))
    return count * NEW / (time.perf_counter() - started)


async def through_engine(served):
    engine = Engine(served, Limits(), Metrics())
    worker = Worker([engine])
    worker.start(asyncio.get_running_loop())
    best = dict.fromkeys(TEXTS, 0.0)
    for _ in range(ROUNDS + 1):
        for count in TEXTS:
            best[count] = max(best[count], await time_engine(engine, count))
    await asyncio.to_thread(worker.stop)
    return best


class Listening:
    """A server in a thread of this process."""

    def __init__(self, served, **limits):
        listener = open_port("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        limits = Limits(**limits)
        app = build_app(served, limits)
        self.server = Server(app, app.state.worker, limits.seconds)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()


async def stream(client, model, new, prompt="Return the number of"):
    """Tokens that a stream says it has written; it must end as streams do."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": new,
        "temperature": 0.8,
        "top_p": 0.95,
        "stream": True,
    }
    body["stream_options"] = {"include_usage": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    return json.loads(lines[-2].removeprefix("data: "))["usage"]["completion_tokens"]


async def through_http(address, model):
    best = dict.fromkeys(TEXTS, 0.0)
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        for _ in range(ROUNDS + 1):
            for count in TEXTS:
                started = time.perf_counter()
                tokens = sum(
                    await asyncio.gather(*(stream(client, model, NEW) for _ in range(count)))
                )
                best[count] = max(best[count], tokens / (time.perf_counter() - started))
    return best


def as_client(ask, *arguments):
    """What `ask` finds, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run_to_its_end, ask, arguments).result()


def run_to_its_end(ask, arguments):
    return asyncio.run(ask(*arguments))


def resident(process):
    """Megabytes of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def soak(address, models, seconds, server):
    """Streams without a pause, some of which go away before they end; none that stays may be
    lost.
    """
    ended = lost = gone = tokens = 0
    until = time.monotonic() + seconds
    chance = random.Random(0)

    async def keep_asking(client):
        nonlocal ended, lost, gone, tokens
        while time.monotonic() < until:
            leaves = chance.random() < 0.1
            asked = stream(client, chance.choice(models), chance.randint(1, 200))
            try:
                written = await asyncio.wait_for(asked, 0.05 if leaves else 300)
                ended, tokens = ended + 1, tokens + written
            except TimeoutError:
                gone += leaves
                lost += not leaves
            except (httpx.HTTPError, AssertionError) as error:
                lost += 1
                print(f"lost: {error!r}", file=sys.stderr)

    async def watch():
        begun = time.monotonic()
        while time.monotonic() < until:
            print(
                f"{time.monotonic() - begun:>4.0f} s {ended:>7,} streams {resident(server):>7.1f} "
                f"MB",
                flush=True,
            )
            await asyncio.sleep(seconds / 6)

    limits = httpx.Limits(max_connections=SOAK_STREAMS)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        await asyncio.gather(watch(), *(keep_asking(client) for _ in range(SOAK_STREAMS)))
    print(
        f"{seconds:.0f} s {ended:>7,} streams ended, {gone:,} went away, {lost:,} lost; {tokens:,} "
        f"tokens;",
        end=" ",
    )
    print(f"{resident(server):.1f} MB", flush=True)


def show(title, rates):
    ratio = rates[TEXTS[-1]] / rates[1]
    print(
        f"{title:<20}" + "".join(f"{rates[count]:>10,.0f}" for count in TEXTS) + f"{ratio:>8.1f}x",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", help="Run folders.")
    parser.add_argument("--soak", type=float, default=60, help="Seconds under load; 0 for none.")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    reserve_core()
    served = load_served_models(asked.run) if asked.run else make_shapes()
    print(
        f"{describe_device(torch.device('cpu'))}"
        f", torch {torch.__version__}; tokens a second of all texts "
        f"together"
    )
    print(f"{'':<20}" + "".join(f"{f'{count} texts':>10}" for count in TEXTS) + f"{'16 to 1':>9}")
    for name, run in served.items():
        size = count_parameters(run.model) / 1e6
        show(f"{name} {size:.1f} M, engine", asyncio.run(through_engine(run)))
    with Listening(served, max_queue=SOAK_STREAMS) as server:
        for name in served:
            show(f"{name}, HTTP", as_client(through_http, server.address, name))
        if asked.soak:
            print(
                f"\n{SOAK_STREAMS} streams at a time over HTTP, each of 1 to 200 tokens, one in "
                f"ten goes away:",
                flush=True,
            )
            as_client(soak, server.address, list(served), asked.soak, os.getpid())


if __name__ == "__main__":
    main()
