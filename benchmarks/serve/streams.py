"""Time the server beside llama.cpp's: streams at a time, first tokens, and a prompt that fills it.

Both servers have 64 slots, the same model with random weights in float32, and the same client,
which is a process of its own on the same cores. Each of so many streams asks again when its answer
has ended. The rounds of both sides take turns; the best tokens a second of a round count, and the
time to the first token of all answers. llama.cpp is tried with one thread and with all, and the
better one counts. Then some texts are written while another prompt fills the window: shown is the
longest wait for news of those texts, before that prompt and with it, and the time to the token of
the prompt, each as the median of some tries. llama.cpp is measured where
`xllamacpp` and `gguf` are installed. With --tiny all parts run in seconds, and no figure counts.

    python benchmarks/serve/streams.py > benchmarks/serve/streams.txt
"""

import argparse
import asyncio
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import httpx
import torch
import transformers
from serve import Listening, run_to_its_end
from transformers import GPT2Config, LlamaConfig

from rung import runs
from rung.data.corpus import load_corpus
from rung.data.tokenizer_training import build_tokenizer
from rung.device import configure_threads, count_cores, describe_device
from rung.models import count_parameters
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.llama3 import LlamaForCausalLM
from rung.serve.registry import ServedModel
from rung.serve.worker import reserve_core

SLOTS = 64
STREAMS = (1, 4, 16, 64)
ROUNDS = 3
NEW = 64  # tokens of an answer
VOCABULARY = 8192
WINDOW = 1024
WRITERS = 4  # texts beside the prompt that fills the window
LLAMA = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 688,
    "max_position_embeddings": WINDOW,
    "tie_word_embeddings": True,
}
SMALLER = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
path, slots, window, threads = sys.argv[1], *map(int, sys.argv[2:])
params.model.path, params.n_parallel, params.n_ctx = path, slots, slots * window
params.n_threads_http, params.warmup, params.cache_prompt = 8, True, False
params.port, params.timeout_read = 0, 600
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class LlamaCpp:
    """llama.cpp's server in a process of its own."""

    def __init__(self, path, slots, window, threads):
        command = [sys.executable, "-c", SERVER, *map(str, (path, slots, window, threads))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)

    def __enter__(self):
        self.address = self.process.stdout.readline().strip()
        if not self.address.startswith("http"):
            raise RuntimeError(f"llama.cpp's server has not begun: {self.address!r}")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Client:
    """A process that asks the servers: a fork, made before anything is computed."""

    def __init__(self):
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("fork"))
        self.pool.submit(int).result()

    def run(self, ask, *arguments):
        return self.pool.submit(run_to_its_end, ask, arguments).result()


async def ask(client, prompt, new, news=None):
    """The times of all news of an answer since it was asked for, in seconds, and its tokens."""
    news = [] if news is None else news
    body = {"model": "served", "prompt": prompt, "max_tokens": new, "stream": True}
    body |= {"temperature": 0.8, "top_p": 0.95, "stream_options": {"include_usage": True}}
    # llama.cpp reads each prompt anew, and ends where rung does.
    options = {"cache_prompt": False, "ignore_eos": True} if client.is_llama_cpp else {}
    started, tokens = time.perf_counter(), 0
    async with client.stream("POST", "/v1/completions", json=body | options) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            news.append(time.perf_counter() - started)
            usage = json.loads(line.removeprefix("data: ")).get("usage")
            tokens = usage["completion_tokens"] if usage else tokens
    return news, tokens


def connect(address, is_llama_cpp):
    # Each request has its own connection: on a busy machine llama.cpp's server closes kept ones.
    limits = httpx.Limits(max_connections=SLOTS + WRITERS, max_keepalive_connections=0)
    client = httpx.AsyncClient(base_url=address, timeout=300, limits=limits)
    client.is_llama_cpp = is_llama_cpp
    return client


async def load(address, is_llama_cpp, streams, answers):
    """Tokens a second with so many streams at a time, and the seconds to each first token."""
    left = list(range(answers))
    firsts, written = [], 0

    async def keep_asking(client):
        nonlocal written
        while left:
            news, tokens = await ask(client, f"{left.pop()}: return the number of", NEW)
            firsts.append(news[0])
            written += tokens

    async with connect(address, is_llama_cpp) as client:
        started = time.perf_counter()
        await asyncio.gather(*(keep_asking(client) for _ in range(streams)))
        return written / (time.perf_counter() - started), firsts


async def hold_up(address, is_llama_cpp, length, new):
    """The longest wait for news before a long prompt came and while it was read; to its token."""
    async with connect(address, is_llama_cpp) as client:
        started, begun = time.perf_counter(), [[] for _ in range(WRITERS)]
        asked = [
            asyncio.create_task(ask(client, f"{i}: return", new, news))
            for i, news in enumerate(begun)
        ]
        while min(map(len, begun)) < 5 and not all(task.done() for task in asked):
            await asyncio.sleep(0.002)
        came = time.perf_counter() - started
        (first, *_), _ = await ask(client, [5 + i % 90 for i in range(length)], 1)
        gone = time.perf_counter() - started
        news = [found for found, _ in await asyncio.gather(*asked)]
    before, during = [], []
    for times in news:
        for early, late in itertools.pairwise(times):
            if late <= came:
                before.append(late - early)
            elif early <= gone:
                during.append(late - early)
    # No number where the texts ended before the prompt was read.
    return max(before, default=math.nan), max(during, default=math.nan), first


def milliseconds(seconds, share):
    """A quantile of the seconds."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare_streams(client, sides, streams, answers, rounds):
    """For each side the best tokens a second and all first tokens; the sides take turns."""
    found = {name: (0.0, []) for name in sides}
    for turn in range(rounds + 1):
        for name, address in sides.items():
            rate, firsts = client.run(load, address, name != "rung", streams, answers)
            if turn:  # the first round is not counted
                best, before = found[name]
                found[name] = max(best, rate), before + firsts
    return found


def show_streams(found, streams):
    peers = {name: side for name, side in found.items() if name != "rung"}
    rate, firsts = found["rung"]
    cells = f"{rate:>10,.0f}{milliseconds(firsts, 0.5):>9.1f}{milliseconds(firsts, 0.99):>9.1f}"
    if not peers:
        print(f"{streams:>7}{cells}", flush=True)
        return
    name = max(peers, key=lambda name: peers[name][0])
    its, their_firsts = peers[name]
    cells += f"{its:>12,.0f}{milliseconds(their_firsts, 0.5):>9.1f}"
    cells += f"{milliseconds(their_firsts, 0.99):>9.1f}{name.split()[-1]:>9}"
    faster = statistics.median(their_firsts) / statistics.median(firsts)
    print(f"{streams:>7}{cells}{rate / its:>9.2f}x{faster:>8.2f}x", flush=True)


def make_served(model, tokenizer):
    return {"served": ServedModel("served", model.eval(), tokenizer, {})}


def write_gguf(model, tokenizer, folder):
    """The model for llama.cpp; None, with a line, where it cannot be written or read."""
    try:
        import xllamacpp  # noqa: F401

        from rung.export.export import export

        runs.save_model(runs.make_folder(folder / "run"), model, tokenizer)
        export(str(folder / "run"), "gguf", folder / "model.gguf", "f32")
    except ImportError as error:
        print(f"llama.cpp was not measured: {error}")
        return None
    return folder / "model.gguf"


def measure_streams(client, model, tokenizer, counts, answers, rounds):
    print(f"\nLlama of {count_parameters(model) / 1e6:.1f} M, float32, {NEW} tokens an answer")
    print(f"{'':7}{'rung':>10}{'first token, ms':>18}{'llama.cpp':>12}{'first token, ms':>18}")
    heads = ("tokens/s", "median", "99th")
    print(
        f"{'streams':7}{heads[0]:>10}{heads[1]:>9}{heads[2]:>9}{heads[0]:>12}{heads[1]:>9}"
        f"{heads[2]:>9}{'threads':>9}{'rate':>10}{'first':>9}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(model, tokenizer, Path(folder))
        threads = sorted({1, count_cores()}) if path else []
        peers = [LlamaCpp(path, SLOTS, WINDOW // 2, count) for count in threads]
        with Listening(make_served(model, tokenizer), max_batch=SLOTS) as ours:
            try:
                sides = {"rung": ours.address}
                for count, peer in zip(threads, peers, strict=True):
                    sides[f"llama.cpp {count}"] = peer.__enter__().address
                for streams in counts:
                    each = max(answers, 3 * streams)
                    found = compare_streams(client, sides, streams, each, rounds)
                    show_streams(found, streams)
            finally:
                for peer in peers:
                    peer.__exit__()


def measure_hold_up(client, title, model, tokenizer, new):
    """Rows of the longest waits, of both servers."""
    length = model.context_length - 8
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(model, tokenizer, Path(folder))
        with Listening(make_served(model, tokenizer), max_batch=WRITERS + 1) as ours:
            waits = [client.run(hold_up, ours.address, False, length, new) for _ in range(ROUNDS)]
            show_hold_up(f"{title}, rung", waits)
        if path:
            with LlamaCpp(path, WRITERS + 1, model.context_length, count_cores()) as peer:
                waits = [
                    client.run(hold_up, peer.address, True, length, new) for _ in range(ROUNDS)
                ]
            show_hold_up(f"{title}, llama.cpp", waits)


def show_hold_up(title, waits):
    """Print the medians of several tries."""
    medians = (statistics.median(several) for several in zip(*waits, strict=True))
    print(f"{title:32}" + "".join(f"{1000 * each:>12,.1f}" for each in medians), flush=True)


def make_models(tiny):
    """The models of both tables, with random weights."""
    torch.manual_seed(0)
    small = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, **LLAMA | (SMALLER if tiny else {}))
    )
    if tiny:
        return small, {"tiny Llama": small}
    large = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY))
    return small, {"Llama of 6.8 M": small, "GPT-2 small, 92 M": large}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    client = Client()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    reserve_core()
    tokenizer = build_tokenizer("bpe", load_corpus("python-docs").sample_train(1), VOCABULARY)
    small, models = make_models(tiny)
    print(f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}")
    counts, answers, rounds = ((1, 4), 4, 1) if tiny else (STREAMS, SLOTS, ROUNDS)
    measure_streams(client, small, tokenizer, counts, answers, rounds)
    print(f"\n{WRITERS} texts are written, and a prompt that fills the window comes; milliseconds")
    print(f"{'longest wait for news:':32}{'before it':>12}{'with it':>12}{'its token':>12}")
    for title, model in models.items():
        measure_hold_up(client, title, model, tokenizer, 200 if "GPT-2" in title else 800)


if __name__ == "__main__":
    configure_threads()
    main()
