"""Measure rung beside 0, 1, 2 and 4 busy processes: decoding, training and serving.

The kernel shares cores among threads that want to run. A job of t threads beside k busy processes
of one thread each has a fair share of n / (t + k) of t cores, n being the cores of the machine, or
all of t where t + k is not more than n. `share` is what the job did of that: its tokens a second
beside the processes, over those of as many threads without them, over the fair share. `1 thread` is
how many times as fast the job is as the same job held to one thread. t is what rung chose by
itself: by `avoid_busy_cores` when it began, and for steps in C by trials of them (`ThreadTrials`).
Every side is a process of its own; they take turns, and the medians of some rounds count. In the
rows `met midway` the processes come when the run has trained for some seconds; what counts is from
there on, the second in which it does not know of them yet too, for which two threads may be slower
than one.

    python benchmarks/device/busy.py > benchmarks/device/busy.txt
    python benchmarks/device/busy.py --tiny      # all parts in a minute; the figures mean nothing
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOADS = (0, 1, 2, 4)
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
VOCABULARY = 1024
SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"intermediate_size": 352, "num_hidden_layers": 4, "max_position_embeddings": 256}
BATCH, LENGTH = 8, 256  # of a training step
ALONE = 2.0  # seconds until processes come midway
NEW = 200  # tokens of a text
MIDWAY = "training, met midway"
JOBS = {
    "decoding, 1 text": ("decode", 1),
    "training, 8 x 256 tokens": ("train", BATCH),
    MIDWAY: ("train_midway", BATCH),
    "serving, 1 text": ("serve", 1),
    "serving, 16 texts": ("serve", 16),
}


class Worker:
    """The child's side: does a job for some seconds, and says with how many threads."""

    def __init__(self, job):
        import torch

        from rung.data.corpus import load_corpus
        from rung.data.tokenizer_training import build_tokenizer
        from rung.models import build_model, make_config
        from rung.serve.worker import reserve_core

        self.kind, self.count = JOBS[job]
        if self.kind == "serve":  # as `rung serve` does, before anything is computed
            reserve_core()
        torch.manual_seed(0)
        self.tokenizer = build_tokenizer(
            "bpe", load_corpus("python-docs").sample_train(1), VOCABULARY
        )
        self.model = build_model("llama3", make_config("llama3", self.tokenizer, SHAPE)).eval()
        self.threads, self.load = 1, 0
        self.all_threads = torch.get_num_threads()

    def measure(self, seconds, load):
        """Tokens a second over so many seconds at least, and the threads.

        Where processes come midway, `load` is how many.
        """
        import torch

        from rung.device import avoid_busy_cores, restore_thread_count

        if self.kind != "serve":  # as each of these verbs begins
            restore_thread_count(self.all_threads)
            avoid_busy_cores()
        self.threads = torch.get_num_threads()
        self.load = load
        return getattr(self, self.kind)(seconds)

    @property
    def is_held(self):
        """Whether the job is held to one thread."""
        return os.environ.get("OMP_NUM_THREADS") == "1"

    def decode(self, seconds):
        import torch

        from rung.generation.decoder import Decoder, generate_tokens
        from rung.generation.sampling import Sampling

        decoder, sampling = Decoder(self.model), Sampling(temperature=0, max_new_tokens=NEW)
        with torch.inference_mode():
            rate = repeat(
                lambda: len(list(generate_tokens(decoder, [[3, 4, 5]], sampling, ()))), seconds
            )
        self.note_threads(decoder.native)
        return rate

    def note_threads(self, native):
        """Note how many threads the steps that took most time of late have, if made in C."""
        if native:
            sizes = native.trials.sizes.values()
            self.threads = max(sizes, key=lambda size: size.usual.seconds).threads

    def train(self, seconds):
        """The first steps are not counted."""
        times = []
        self.take_steps(lambda: times.append(time.perf_counter()), steps=4 + round(4 * seconds))
        steps = [late - early for early, late in itertools.pairwise(times)]
        # All of them, and not the median one: what a step waits for counts.
        return BATCH * LENGTH * len(steps) / sum(steps)

    def train_midway(self, seconds):
        """A run of minutes, and the load that comes after some seconds."""
        import torch

        times = []
        with contextlib.ExitStack() as stack:

            def note_step():
                times.append(time.perf_counter())
                if len(times) > 1 and times[-1] - times[0] > ALONE and not arrived:
                    arrived.append(len(times) - 1)
                    stack.enter_context(keep_busy(self.load))

            arrived = []
            # Twice as long as the others, for it looks around every second; and what the clock
            # holds back for the last evaluation.
            self.take_steps(note_step, minutes=(ALONE + 2 * seconds + 1) / 60)
        self.threads = torch.get_num_threads()
        first = arrived[0]
        return BATCH * LENGTH * (len(times) - 1 - first) / (times[-1] - times[first])

    def take_steps(self, note_step, **duration):
        """`rung.training.train.train`, which calls `note_step` after each step."""
        import numpy

        from rung.data.packing import PackedTokens
        from rung.training.callbacks import TrainingCallbacks
        from rung.training.settings import TrainSettings
        from rung.training.train import train

        generator = numpy.random.default_rng(0)
        tokens = generator.integers(3, VOCABULARY, 400_000, dtype=numpy.uint16)
        packed = PackedTokens(tokens=tokens, starts=numpy.zeros(1))
        callbacks = TrainingCallbacks(
            evaluate=lambda model: 0.0,
            sample=lambda model: "",
            on_progress=lambda _: note_step(),
        )
        arguments = {"per_device_train_batch_size": BATCH, "logging_steps": 1}
        arguments |= {"eval_strategy": "no", "save_strategy": "no"}
        settings = TrainSettings(arguments=arguments, **duration)
        with tempfile.TemporaryDirectory() as folder:
            train(self.model.train(), self.tokenizer, packed, Path(folder), settings, callbacks)

    def serve(self, seconds):
        """The engine with its queue, each text streamed to a reader."""
        import asyncio

        return asyncio.run(self.serve_texts(seconds))

    async def serve_texts(self, seconds):
        import asyncio

        from rung.serve.engine import Engine
        from rung.serve.limits import Limits
        from rung.serve.metrics import Metrics
        from rung.serve.registry import ServedModel
        from rung.serve.worker import Worker as EngineWorker

        engine = Engine(
            ServedModel("llama3", self.model.eval(), self.tokenizer, {}), Limits(), Metrics()
        )
        native = getattr(engine.batch.cache, "native", None)
        if native and self.is_held:
            native.spare_cores = 0
        worker = EngineWorker([engine])
        worker.start(asyncio.get_running_loop())
        started, tokens = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            await asyncio.gather(*(self.read(engine, seed) for seed in range(self.count)))
            tokens += self.count * NEW
        took = time.perf_counter() - started
        await asyncio.to_thread(worker.stop)
        self.note_threads(native)
        return tokens / took

    async def read(self, engine, seed):
        import asyncio

        from rung.generation.sampling import Sampling
        from rung.serve.sequences import GenerationRequest

        sampling = Sampling(max_new_tokens=NEW, temperature=0.8, top_p=0.95, seed=seed)
        request = GenerationRequest(
            ids=list(range(3, 19)), sampling=sampling, stop_ids=frozenset(), streams=True
        )
        text = engine.submit([request], asyncio.Event(), time.monotonic())[0]
        while True:
            await text.news.wait()
            text.news.clear()
            delta = text.take()
            if delta is not None and delta.is_last:
                return


def repeat(compute, seconds):
    """Tokens a second of calls that return how many they made."""
    started, tokens = time.perf_counter(), 0
    while (took := time.perf_counter() - started) < seconds:
        tokens += compute()
    return tokens / took


@contextlib.contextmanager
def keep_busy(count):
    """Run so many processes that each keep a core busy."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_child(job):
    """For each line of input, seconds and a load, tell tokens a second and threads of the job."""
    import transformers

    from rung.device import configure_threads

    configure_threads()
    transformers.logging.set_verbosity_error()
    answers, sys.stdout = sys.stdout, sys.stderr  # the Trainer's callbacks print
    child = Worker(job)
    print("ready", file=answers, flush=True)
    for seconds, load in map(json.loads, sys.stdin):
        rate = child.measure(seconds, load)
        print(json.dumps([rate, child.threads]), file=answers, flush=True)


def start(job, *, is_held):
    """A child that does the job as rung does, or held to one thread."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    if is_held:
        environment["OMP_NUM_THREADS"] = "1"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, __file__, "--child", job]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, **pipes)


def ask(child, seconds, load):
    child.stdin.write(f"{json.dumps([seconds, load])}\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if not answer:
        sys.exit(f"a child has ended with {child.wait()}: {' '.join(map(str, child.args))}")
    return json.loads(answer)


def fair_share(threads, busy, cores):
    """The part of `threads` cores that a job may have beside so many busy processes."""
    return min(1.0, cores / (threads + busy))


def measure_job(job, loads, rounds, seconds):
    """[rate, threads] of rung and of one thread, by number of busy processes, once a round.

    Each job has processes of its own: what one leaves behind, as threads, is not in the way of the
    next.
    """
    found = {(load, held): [] for load in loads for held in (False, True)}
    children = {held: start(job, is_held=held) for held in (False, True)}
    try:
        for child in children.values():
            if child.stdout.readline().strip() != "ready":
                sys.exit(f"a child has ended with {child.wait()}")
            ask(child, seconds / 2, 0)
        for _ in range(rounds):
            for load in loads:
                with keep_busy(0 if job == MIDWAY else load):  # its child starts them itself
                    for held, child in children.items():
                        found[load, held].append(ask(child, seconds, load))
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    return found


def show(job, found, cores):
    """A row for each number of processes; whether every figure is as it should be."""
    rate = {key: statistics.median(rate for rate, _ in several) for key, several in found.items()}
    threads = {key: round(statistics.median(t for _, t in found[key])) for key in found}
    # What so many threads do without other processes.
    quiet = {threads[0, True]: rate[0, True], threads[0, False]: rate[0, False]}
    good = True
    for load, held in found:
        if held:
            continue
        mine, used = rate[load, False], threads[load, False]
        fair = fair_share(used, load, cores)
        # Some of more cores than two: in proportion.
        base = quiet.get(used, rate[0, False] * used / threads[0, False])
        share = mine / (base * fair)
        gain = mine / rate[load, True]
        good &= share >= 0.8 and gain >= 0.95
        print(
            f"{job:26}{load:>6}{used:>9}{mine:>11,.0f}{fair:>8.0%}{share:>9.0%}{gain:>9.2f}x",
            flush=True,
        )
    return good


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="one short round beside 0 and 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--jobs", default=",".join({kind for kind, _ in JOBS.values()}))
    parser.add_argument("--child", choices=JOBS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        run_child(chosen.child)
        return
    import torch

    from rung.device import count_cores, describe_device

    loads, rounds, seconds = LOADS, chosen.rounds, chosen.seconds
    if chosen.tiny:
        loads, rounds, seconds = (0, 2), 1, 0.2
    machine = f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}"
    print(f"{machine}; the median of {rounds} rounds\n")
    heads = f"{'beside':>6}{'threads':>9}{'tokens/s':>11}{'fair':>8}{'share':>9}{'1 thread':>10}"
    print(f"{'Llama of 0.9 M':26}{heads}", flush=True)
    good = True
    for job, (kind, _) in JOBS.items():
        if kind in chosen.jobs.split(","):
            found = measure_job(job, loads, rounds, seconds)
            good &= show(job, found, count_cores())
    print(f"\nat least 80% of the fair share, and never slower than one thread: {good}")


if __name__ == "__main__":
    main()
