"""Time the step in C beside llama.cpp: decoding and reading prompts, in three widths of weights.

The sides take turns, each in a process of its own and after a rest, and the best of all turns
counts, by the wall clock and by the side's processor time (the one to look at on a machine that
does other things). rung may use `--threads`, and llama.cpp is tried with one thread and with as
many: with one it decodes a small model faster where a waiting thread is slow to wake. rung's
float32, bfloat16 and int8 stand against llama.cpp's F32, F16 and Q8_0, and int8 against Q4_0 too. A
text is decoded greedily behind a prompt that was read before; choosing the token is in the time of
both. llama.cpp is `xllamacpp`, whose wheel is built for AVX2 on every processor.

Last, one text is decoded by the large model in turns with a plain read, in C and by as many
threads, of as many bytes as its weights have: the rate of memory that decoding reaches.

`--avx2` holds torch, oneDNN and the C compiler to AVX2; its output stands in llama_cpp-avx2.txt.
`--short` leaves the large model and the long prompts out.

    python benchmarks/generation/llama_cpp.py [--avx2] > benchmarks/generation/llama_cpp.txt
"""

import argparse
import contextlib
import ctypes
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import torch
import transformers
import xllamacpp
from transformers import GPT2Config, LlamaConfig

from rung import compiler, runs
from rung.compiler import Address, compile_source
from rung.data.corpus import load_corpus
from rung.data.tokenizer_training import build_tokenizer
from rung.device import describe_device
from rung.export.gguf import WEIGHT_TYPES, convert_weights, write_gguf
from rung.export.hf import read_weights
from rung.generation.decoder import Decoder
from rung.generation.native import STEP_SOURCE
from rung.generation.sampling import Sampling, sample_tokens
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.llama3 import LlamaForCausalLM

ROUNDS = 3
NEW = 64  # tokens that are decoded at a time
TURN = 0.4  # seconds of a turn at least, so long that a side settles in it
REST = 0.05  # seconds before a turn, in which threads of another side stop to wait for work
LENGTHS = (16, 512, 2048)  # of prompts; batches have no more than 512
WINDOW = 2304
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
READ_SOURCE = Path(__file__).with_name("read.c")
READ_BYTES = 256  # of a step of read.c
LLAMA = LlamaConfig(
    vocab_size=8192,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=688,
    max_position_embeddings=WINDOW,
    tie_word_embeddings=True,
)
Q4_0 = replace(WEIGHT_TYPES["q8_0"], matrix="Q4_0", file="MOSTLY_Q4_0")
# Ours, the type of the peer's matrices, and how the file is written.
WIDTHS = [
    ("float32", None, "F32", WEIGHT_TYPES["f32"]),
    ("bfloat16", torch.bfloat16, "F16", WEIGHT_TYPES["f16"]),
    ("int8", torch.int8, "Q8_0", WEIGHT_TYPES["q8_0"]),
    ("int8", torch.int8, "Q4_0", Q4_0),
]
GREEDY = Sampling(temperature=0)


def timed(do):
    """Make a method return its seconds, by the wall clock and of processor time."""

    @functools.wraps(do)
    def measured(*given):
        wall, busy = time.perf_counter(), time.process_time()
        do(*given)
        return time.perf_counter() - wall, time.process_time() - busy

    return measured


class Rung:
    """Our side: `read` the prompts, then `decode` so many tokens behind them, again and again."""

    def __init__(self, model, weights):
        self.model, self.decoder = model, Decoder(model, weights)

    @timed
    def read(self, prompts, room):
        with torch.inference_mode():
            self.logits = self.decoder.prefill(prompts, room + 1)

    @timed
    def decode(self, prompts, count):
        with torch.inference_mode():
            tokens = sample_tokens(self.logits, GREEDY, None)
            for _ in range(count):
                tokens = sample_tokens(self.decoder.decode(tokens[:, None])[:, -1], GREEDY, None)
                tokens.tolist()
            self.decoder.rollback(count)


class LlamaCpp:
    """The peer. It keeps a text's keys and values in its slot, so a prompt is read once."""

    def __init__(self, path, batch, threads):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = WINDOW * batch, batch, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server, self.pool = xllamacpp.Server(params), ThreadPoolExecutor(batch)

    @timed
    def read(self, prompts, room):
        self._ask(prompts, 1, fresh=True)

    @timed
    def decode(self, prompts, count):
        # The last token of a prompt is always read again.
        self._ask(prompts, count, fresh=False)

    def _ask(self, prompts, count, fresh):
        asked = {"n_predict": count, "temperature": 0, "ignore_eos": True, "samplers": ["top_k"]}
        asked |= {"top_k": 1, "cache_prompt": not fresh}
        each = [asked | {"prompt": ids, "id_slot": slot} for slot, ids in enumerate(prompts)]
        for answer in self.pool.map(self.server.handle_completions, each):
            if answer.get("timings", {}).get("predicted_n") != count:
                raise RuntimeError(f"{count} tokens were asked for: {str(answer)[:2000]}")


def serve(connection, *given):
    """Do what is asked of the peer, until its process ends."""
    peer = LlamaCpp(*given)
    connection.send("ready")
    while True:
        name, *asked = connection.recv()
        connection.send(getattr(peer, name)(*asked))


class Peer:
    """llama.cpp in a process of its own.

    In one process both sides' threads would be of one OpenMP, which has a thread that waits for
    others sleep at once where there are more of them than cores.
    """

    def __init__(self, *given):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, *given), daemon=True)
        self.process.start()
        self.connection.recv()

    def _ask(self, *asked):
        self.connection.send(asked)
        return self.connection.recv()

    def read(self, prompts, room):
        return self._ask("read", prompts, room)

    def decode(self, prompts, count):
        return self._ask("decode", prompts, count)

    def stop(self):
        self.process.terminate()
        self.process.join()


def measure(sides, do, tokens, rounds=ROUNDS):
    """Tokens a second of each side, by the wall clock and by processor time, in turns."""
    best = [(float("inf"),) * 2 for _ in sides]
    for _ in range(rounds):
        for place, side in enumerate(sides):
            time.sleep(REST)
            end = time.perf_counter() + TURN
            while True:
                best[place] = tuple(map(min, best[place], do(side)))
                if time.perf_counter() > end:
                    break
    return [[tokens / seconds for seconds in its] for its in best]


def show(what, ours, theirs):
    rates = "".join(f"{rate:>10,.0f}" for rate in (ours[0], theirs[0], ours[1], theirs[1]))
    ratios = "".join(f"{mine / its:>8.2f}x" for mine, its in zip(ours, theirs, strict=True))
    print(f"{what:<44}{rates}{ratios}", flush=True)


def write_files(model, folder):
    """Write the model once for each of the peer's types."""
    runs.save_model(runs.make_folder(folder / "run"), model, make_tokenizer(model))
    weights = convert_weights(gguf, model.config, read_weights(folder / "run"))
    for _, _, name, kind in WIDTHS:
        write_gguf(gguf, folder / f"{name}.gguf", folder / "run", model.config, weights, kind)


def hold_to_avx2():
    """Start this script anew where torch may use more, and let C be compiled for AVX2."""
    if AVX2.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AVX2)
    compiler.FLAGS = tuple(flag.replace("native", "x86-64-v3") for flag in compiler.FLAGS)


def make_tokenizer(model):
    """Any tokenizer will do: the prompts are tokens."""
    texts = load_corpus("python-docs").train["text"]
    return build_tokenizer("bpe", texts, min(model.config.vocab_size, 8192))


def draw_prompts(model, batch, length):
    generator = torch.Generator().manual_seed(0)
    high = min(model.config.vocab_size, 8192)
    return torch.randint(3, high, (batch, length), generator=generator).tolist()


def take_best(rates):
    """Return the best of some sides' rates, by the wall clock and by processor time."""
    return [max(each) for each in zip(*rates, strict=True)]


def compare(title, model, batches, prompts, threads):
    with tempfile.TemporaryDirectory() as folder:
        write_files(model, Path(folder))
        for ours, weights, theirs, _ in WIDTHS:
            rung = Rung(model, weights)
            for batch in batches:
                path = Path(folder) / f"{theirs}.gguf"
                peers = [Peer(path, batch, count) for count in sorted({1, threads})]
                for length in prompts if batch == 1 else [n for n in prompts if n <= 512]:
                    ids = draw_prompts(model, batch, length)
                    name = f"{title} {ours:<8} {theirs:<5} batch {batch:<2} prompt {length:<4}"
                    sides = (rung, *peers)
                    tokens, rounds = batch * length, ROUNDS if batch == 1 else 1
                    read = measure(sides, lambda it, ids=ids: it.read(ids, NEW), tokens, rounds)
                    rate = measure(sides, lambda it, ids=ids: it.decode(ids, NEW), batch * NEW)
                    show(f"{name} read", read[0], take_best(read[1:]))
                    show(f"{name} decode", rate[0], take_best(rate[1:]))
                for peer in peers:
                    peer.stop()


def compare_with_memory(model, threads):
    """Print the rate at which decoding one text reads its weights, beside that of a plain read."""
    library = compile_source(READ_SOURCE)
    library.read_all.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    heads = ("tokens/s", "GB/s", "read GB/s", "share", "CPU share")
    print(f"\n124 M, batch 1, prompt 16{'':<19}{''.join(f'{head:>10}' for head in heads)}")
    ids = draw_prompts(model, 1, 16)
    for name, weights, _, _ in WIDTHS[:3]:
        rung = Rung(model, weights)
        rung.read(ids, 16)
        steps = sum(part.nbytes for part in rung.decoder.native.kept) // READ_BYTES
        memory = torch.ones(steps * READ_BYTES // 4)
        address = Address(memory, memory.shape, memory.dtype)

        @timed
        def read(steps=steps, address=address):
            for _ in range(16):
                library.read_all(address, steps, threads)

        sides = (lambda rung=rung: rung.decode(ids, 16), read)
        ours, plain = measure(sides, lambda side: side(), 16, 3 * ROUNDS)
        show_share(name, steps * READ_BYTES / 1e9, ours, plain)


def show_share(name, gigabytes, ours, plain):
    """Print how often a second the weights are read, by the wall clock and by processor time."""
    shares = "".join(f"{mine / most:>10.0%}" for mine, most in zip(ours, plain, strict=True))
    rates = f"{ours[0]:>10,.0f}{ours[0] * gigabytes:>10.1f}{plain[0] * gigabytes:>10.1f}"
    print(f"{name + f', {1000 * gigabytes:.0f} MB':<44}{rates}{shares}", flush=True)


@contextlib.contextmanager
def quiet():
    """llama.cpp writes to the standard error of the process."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def describe_sets():
    """Say which instructions torch, our C and the peer's use."""
    lanes = compile_source(STEP_SOURCE).lanes()
    peer = [part.split(" = ")[0].strip() for part in xllamacpp.get_system_info().split("|")]
    widest = next((name for name in ("AVX512", "AVX2", "NEON") if name in peer), "no vectors")
    return f"torch {torch.backends.cpu.get_cpu_capability()}, C of {lanes} lanes, peer {widest}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if given.avx2:
        hold_to_avx2()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    print(
        f"{describe_device(torch.device('cpu'))}, up to {given.threads} threads, torch "
        f"{torch.__version__}, llama.cpp {xllamacpp.__version__}: tokens a second\n"
        f"instructions: {describe_sets()}"
    )
    heads = ("rung", "peer", "rung CPU", "peer CPU")
    print(" " * 44 + "".join(f"{head:>10}" for head in heads) + f"{'ratio':>9}{'CPU':>9}")
    with quiet():
        model = LlamaForCausalLM(LLAMA).eval()
        compare("6.8 M", model, (1, 16), LENGTHS[:1] if given.short else LENGTHS, given.threads)
        if not given.short:
            model = GPT2LMHeadModel(GPT2Config(n_positions=WINDOW)).eval()
            compare("124 M", model, (1, 16), LENGTHS, given.threads)
            compare_with_memory(model, given.threads)


if __name__ == "__main__":
    main()
