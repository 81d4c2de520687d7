"""Compare OpenMP's policy of waiting threads with rung's: decoding and training, quiet and busy.

OpenMP reads its policy once, so each policy has a process of its own. All of them take turns for
some rounds, first with nothing else to do and then beside two processes that never rest. Only
ratios within one run mean anything.

    python benchmarks/device/threads.py > benchmarks/device/threads.txt
    python benchmarks/device/threads.py --spins 0,1000,10000       # other numbers of spins too
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
LOADS = ("quiet", "busy")
BUSY = 2  # processes beside
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
WIDE = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
ROWS = {  # what is timed, fields of the model, vocabulary, rows and tokens of a batch
    "decoding in C, Llama of 0.3 M": ("decode", SMALL, 1024, 1, 100),
    "decoding in C, Llama of 6.8 M": ("decode", WIDE, 8192, 1, 100),
    "decoding in torch, Llama of 0.3 M": ("forward", SMALL, 1024, 1, 40),
    "training steps, Llama of 0.3 M": ("train", SMALL, 1024, 8, 64),
    "training steps, Llama of 6.8 M": ("train", WIDE, 8192, 8, 128),
}


def make_runs():
    """For each row a function that computes some tokens, and how many."""
    import torch

    from rung.data.tokenizer_training import build_tokenizer
    from rung.generation.decoder import Decoder, generate_tokens
    from rung.generation.sampling import Sampling
    from rung.models import build_model, make_config

    def make(kind, fields, vocabulary, rows, length):
        tokenizer = build_tokenizer("char", ["".join(map(chr, range(0x4E00, 0x4E00 + vocabulary)))])
        torch.manual_seed(0)
        model = build_model("llama3", make_config("llama3", tokenizer, fields))
        if kind == "train":
            optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)
            ids = torch.randint(3, vocabulary, (rows, length))

            def step():
                model(input_ids=ids, labels=ids, skip_logits=True).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            return step
        decoder = Decoder(model.eval())
        if kind == "forward":
            decoder.native = None
        order = Sampling(temperature=0, max_new_tokens=length)

        @torch.inference_mode()
        def write():
            return list(generate_tokens(decoder, [[3, 4, 5]] * rows, order, ()))

        return write

    return {name: (make(*row), row[3] * row[4]) for name, row in ROWS.items()}


def serve(seconds):
    """The child: for each line of input, which names a row, the tokens a second of it."""
    runs = make_runs()
    for compute, _ in runs.values():
        compute()
    print("ready", flush=True)
    for line in sys.stdin:
        compute, tokens = runs[line.strip()]
        count, started = 0, time.perf_counter()
        while (took := time.perf_counter() - started) < seconds:
            compute()
            count += 1
        print(json.dumps(count * tokens / took), flush=True)


def start(policy, seconds):
    """A child under this policy: OpenMP's own, rung's, or so many spins."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    begin = (
        "from rung.device import configure_threads; configure_threads()\n"
        if policy == "rung's"
        else ""
    )
    if policy not in ("OpenMP's", "rung's"):
        environment["GOMP_SPINCOUNT"] = policy
    arguments = ["--child", "--seconds", str(seconds)]
    code = (
        f"import runpy, sys; sys.argv = [{__file__!r}, *{arguments}]; runpy.run_path({__file__!r}, "
        f"run_name='__main__')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, "-c", begin + code], env=environment, **pipes)
    if child.stdout.readline().strip() != "ready":
        sys.exit(f"the child with {policy} threads has ended")
    return child


def measure(child, row):
    child.stdin.write(f"{row}\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def measure_all(children, rounds, loads):
    """Tokens a second of every row, load and policy, once a round; the policies in turn."""
    found = {}
    for _ in range(rounds):
        for load in loads:
            count = BUSY if load == "busy" else 0
            beside = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)
            ]
            try:
                for row in ROWS:
                    for policy, child in children.items():
                        found.setdefault((row, load, policy), []).append(measure(child, row))
            finally:
                for process in beside:
                    process.kill()
                    process.wait()
    return found


def print_table(policies, found):
    """Tokens a second of the first policy, and the ratio of each to it; the median over rounds of
    the ratios.
    """
    print(
        f"\n{'':36}{'beside':>8}{policies[0]:>12}"
        + "".join(f"{policy:>12}" for policy in policies[1:])
    )
    for row in ROWS:
        for load in [load for load in LOADS if (row, load, policies[0]) in found]:
            base = found[row, load, policies[0]]
            ratios = [
                [a / b for a, b in zip(found[row, load, p], base, strict=True)]
                for p in policies[1:]
            ]
            cells = "".join(f"{statistics.median(several):>11.2f}x" for several in ratios)
            beside = f"{BUSY} busy" if load == "busy" else "nothing"
            print(f"{row:36}{beside:>8}{statistics.median(base):>12,.0f}{cells}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--spins", default="", help="other values of GOMP_SPINCOUNT, with commas between"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="of one measurement, at the least"
    )
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--child", action="store_true")
    chosen = parser.parse_args()
    if chosen.child:
        serve(chosen.seconds)
        return
    policies = ["OpenMP's", "rung's", *filter(None, chosen.spins.split(","))]
    children = {policy: start(policy, chosen.seconds) for policy in policies}
    try:
        found = measure_all(children, chosen.rounds, chosen.loads.split(","))
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    import torch

    from rung.device import describe_device

    print(
        f"{describe_device(torch.device('cpu'))}, torch {torch.__version__}; tokens a second with "
        f"OpenMP's own policy, and"
    )
    print(
        f"how many times as many with rung's and with so many spins; the median of {chosen.rounds} "
        f"rounds"
    )
    print_table(policies, found)


if __name__ == "__main__":
    main()
