"""Try rung on one GPU, and measure GPT-2 124M beside a plain loop in PyTorch; eight minutes.

With TEXT: one rank of DDP and of FSDP2 on NCCL train as one process does; a killed run is resumed;
bfloat16 and torch.compile lose no more than rounding; greedy text is that of Hugging Face. Then
GPT-2 124M is trained at 1,024 tokens by rung and by a plain loop, in the manner of nanoGPT:
autocast to bfloat16, torch.compile, fused AdamW. MFU is the floating-point operations of the model
(PaLM, appendix B: 6 for each weight but positions, 12 for each layer, unit of width and token of
the window) over what the GPU can do in dense bfloat16. At last `rung climb` has five minutes. The
exit status is 1 where a check failed; a missed target is told, and fails nothing.

    python benchmarks/device/gpu.py TEXT > benchmarks/device/gpu.txt
    python benchmarks/device/gpu.py --tiny TEXT  # all parts on a CPU, gloo for NCCL, in a minute
"""

import argparse
import json
import multiprocessing
import os
import runpy
import socket
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

PEAK = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # dense bfloat16 (NVIDIA's data sheets)
MFU_TARGET, RATIO_TARGET = 0.5, 1.2
SMALL = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 256}
TINY = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50304}
TINY_GPT2 = TINY | {"vocab_size": 1024}
STEPS = 10  # of the runs that are compared
ROWS = 32  # of 1,024 tokens, in a step of GPT-2 124M
WARM_UP, TIMED = 5, 15  # steps
LOSS_TOLERANCE = 0.02  # nats, for rounding alone


def train_small(options, settings):
    """Train a small GPT-2 by `rung.train`; its losses, and what torch.distributed was asked for."""
    with tempfile.TemporaryDirectory() as folder:
        return train_in(options, settings, Path(folder) / "run")


def train_in(options, settings, out):
    import torch

    import rung

    seen = {"backend": None, "ddp": 0, "fsdp2": 0}
    watch_distributed(seen)
    if "train.fsdp" in settings:
        # rung itself shards nothing over one process.
        claim_two_processes()
    run = rung.train(
        "gpt2",
        options.text,
        out=out,
        steps=STEPS,
        set={
            **(TINY if options.tiny else SMALL),
            "train.per_device_train_batch_size": 8,
            "train.logging_steps": 1,
            "train.learning_rate": 1e-3,
            **settings,
        },
    )
    losses = [line["loss"] for line in read_lines(out / "metrics.jsonl") if "loss" in line]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return {**seen, "losses": losses, "bits": run.scores["bits_per_byte"]}


def claim_two_processes():
    """Let the arguments of training keep FSDP2, which they leave out for one process."""
    from rung.training import arguments

    distributed = vars(arguments.distributed) | {"world_size": lambda: 2}
    arguments.distributed = SimpleNamespace(**distributed)


def watch_distributed(seen):
    """Note in `seen` which wrappers are made, and under which backend."""
    import torch
    from torch.distributed import fsdp
    from torch.nn.parallel import DistributedDataParallel

    begin, shard = DistributedDataParallel.__init__, fsdp.fully_shard

    def begin_noted(self, *args, **options):
        seen["ddp"] += 1
        seen["backend"] = torch.distributed.get_backend()
        begin(self, *args, **options)

    def shard_noted(*args, **options):
        seen["fsdp2"] += 1
        seen["backend"] = torch.distributed.get_backend()
        return shard(*args, **options)

    DistributedDataParallel.__init__ = begin_noted
    fsdp.fully_shard = shard_noted


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def in_a_process(function, *arguments, ranks=False):
    """What a function returns in a process of its own, with `ranks` as the one rank of a group.

    It is a fork of this one, which has imported all and computed nothing.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_child, args=(sender, function, arguments, ranks))
    process.start()
    sender.close()
    try:
        good, found = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with {process.exitcode}") from None
    process.join()
    if not good:
        raise RuntimeError(found)
    return found


def run_child(sender, function, arguments, ranks):
    """The other side of `in_a_process`: what is printed goes nowhere."""
    if ranks:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
        try:
            sender.send((True, function(*arguments)))
        except BaseException:
            sender.send((False, traceback.format_exc(limit=-4)))


def run_rung(*arguments):
    """The command, as it is typed: its exit status, and its output."""
    sys.argv = ["rung", *arguments]
    code = 0
    try:
        runpy.run_module("rung", run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os.lseek(1, 0, os.SEEK_SET)
    return code, os.read(1, 1_000_000).decode()


def check_ranks(options):
    """Each way of several processes, with one, learns what one process alone learns."""
    plain = in_a_process(train_small, options, {})
    backend = "gloo" if options.tiny else "nccl"
    ways = {"ddp": {}, "fsdp2": {"train.fsdp": True}}
    for way, settings in ways.items():
        found = in_a_process(train_small, options, settings, ranks=True)
        far = find_distance(found["losses"], plain["losses"])
        good = found[way] > 0 and found["backend"] == backend and far < LOSS_TOLERANCE
        yield good, f"{way} on {found['backend']}, 1 rank: losses apart by {far:.4f} at most"


def find_distance(losses, others):
    """The largest difference of two curves."""
    return max(abs(mine - its) for mine, its in zip(losses, others, strict=True))


def check_precision(options):
    """Training in bfloat16, and compiled, beside float32."""
    plain = in_a_process(train_small, options, {"train.bf16": False})
    half = in_a_process(train_small, options, {"train.bf16": True})
    far = find_distance(half["losses"], plain["losses"])
    yield far < 0.1, f"bfloat16 and float32: losses apart by {far:.4f} at most"
    compiled = {"train.bf16": False, "train.torch_compile": True}
    if options.tiny:
        compiled["train.torch_compile_backend"] = "eager"
    found = in_a_process(train_small, options, compiled)
    far = find_distance(found["losses"], plain["losses"])
    yield far < LOSS_TOLERANCE, f"compiled and not: losses apart by {far:.4f} at most"


def check_resume(options):
    """`rung verify-resume`: a killed run ends as the one that was left alone, to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        fields = TINY if options.tiny else SMALL
        lines = [f"  {name}: {value}" for name, value in fields.items()]
        recipe.write_text("\n".join(["rung: gpt2", f"corpus: {options.text}", "model:", *lines]))
        command = ["verify-resume", str(recipe), "--kills", "1", "--steps", "12", "--quiet"]
        code, printed = in_a_process(run_rung, *command)
    last = " ".join("".join(printed.strip().splitlines()[-1:]).split())
    yield code == 0, f"resume: after a kill, {last}"


def write_text(options):
    """Greedy tokens of rung and of Hugging Face behind the same prompt, and tokens a second."""
    import torch
    import transformers

    from rung.device import choose_device
    from rung.generation.decoder import Decoder, generate_tokens
    from rung.generation.sampling import Sampling
    from rung.models.gpt2 import GPT2LMHeadModel

    device, new = choose_device(), 20 if options.tiny else 200
    torch.manual_seed(0)
    config = transformers.GPT2Config(**TINY_GPT2 if options.tiny else GPT2)
    peer = transformers.GPT2LMHeadModel(config).eval().to(device)
    model = GPT2LMHeadModel(config).eval().to(device)
    model.load_state_dict(peer.state_dict())
    decoder, sampling = Decoder(model), Sampling(temperature=0, max_new_tokens=new)
    ids = torch.tensor([list(range(3, 11))], device=device)
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def ours():
        return [step[0] for step in generate_tokens(decoder, ids.tolist(), sampling, ())]

    def theirs():
        return peer.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, 8:].tolist()

    found, rates = [], []
    with torch.inference_mode():
        for write in (ours, theirs):
            write()
            started = time.perf_counter()
            found.append(write())
            rates.append(new / (time.perf_counter() - started))
    same = statistics.mean(a == b for a, b in zip(*found, strict=True))
    return {"same": same, "rung": rates[0], "hf": rates[1]}


def check_generation(options):
    found = in_a_process(write_text, options)
    yield (
        found["same"] == 1.0,
        f"generation, greedy: {found['same']:.0%} of Hugging Face's tokens; "
        f"{found['rung']:,.0f} tokens/s, Hugging Face {found['hf']:,.0f}",
    )


def time_gpt2(options, side):
    """Tokens a second of one side, on random tokens."""
    import torch

    from rung.device import choose_device

    fields, rows = (TINY_GPT2, 2) if options.tiny else (GPT2, ROWS)
    length = fields["n_positions"]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, fields["vocab_size"], (200_000,), generator=generator)
    if side == "plain":
        times = train_plainly(fields, rows, tokens, choose_device(), options.tiny)
    else:
        times = train_by_rung(fields, rows, tokens, side, options.tiny)
    took = [
        late - early for early, late in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)
    ]
    return rows * length / statistics.median(took)


def train_by_rung(fields, rows, tokens, optimizer, tiny):
    """`rung.training.train.train`, compiled; the time after each step."""
    import numpy
    import torch

    from rung.data.packing import PackedTokens
    from rung.data.tokenizer_training import build_tokenizer
    from rung.models import build_model, make_config
    from rung.training.callbacks import TrainingCallbacks
    from rung.training.settings import TrainSettings
    from rung.training.train import train

    # Only its size counts.
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + fields["vocab_size"] - 3)))
    tokenizer = build_tokenizer("char", [letters])
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    settings = {name: value for name, value in fields.items() if name != "vocab_size"} | still
    torch.manual_seed(0)
    model = build_model("gpt2", make_config("gpt2", tokenizer, settings))
    packed = PackedTokens(tokens=tokens.numpy().astype(numpy.uint16), starts=numpy.zeros(1))
    arguments = {
        "optim": optimizer,
        "learning_rate": 6e-4,
        "per_device_train_batch_size": rows,
        "bf16": True,
        "torch_compile": True,
        "logging_steps": 1000,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    if tiny:
        arguments["torch_compile_backend"] = "eager"
    times = []
    callbacks = TrainingCallbacks(
        evaluate=lambda model: 0.0,
        sample=lambda model: "",
        on_progress=lambda _: times.append(now()),
    )
    run = TrainSettings(steps=WARM_UP + TIMED, arguments=arguments)
    with tempfile.TemporaryDirectory() as out:
        train(model, tokenizer, packed, Path(out), run, callbacks)
    return times


def now():
    """The time when all that was asked of the GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def train_plainly(fields, rows, tokens, device, tiny):
    """GPT-2 and its loop as a page of plain PyTorch has them; the time after each step."""
    import torch
    from torch.nn import functional as F

    length = fields["n_positions"]
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = make_plain_gpt2(fields).to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    compiled = torch.compile(model, backend="eager" if tiny else "inductor")
    times = []
    for _ in range(WARM_UP + TIMED):
        starts = torch.randint(len(tokens) - length - 1, (rows,))
        x = torch.stack([tokens[start : start + length] for start in starts])
        y = torch.stack([tokens[start + 1 : start + length + 1] for start in starts])
        if device.type == "cuda":
            x, y = (part.pin_memory().to(device, non_blocking=True) for part in (x, y))
        with torch.autocast(device.type, torch.bfloat16):
            logits = compiled(x)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(now())
    return times


def make_plain_gpt2(fields):
    """GPT-2 in plain PyTorch, with tied weights."""
    from torch import arange, nn
    from torch.nn import functional as F

    width, heads = fields["n_embd"], fields["n_head"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            split = self.qkv(self.norms[0](x)).unflatten(-1, (3, heads, -1))  # B T 3 H K
            q, k, v = split.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(fields["vocab_size"], width)
            self.positions = nn.Embedding(fields["n_positions"], width)
            self.blocks = nn.Sequential(*(Block() for _ in range(fields["n_layer"])))
            self.norm = nn.LayerNorm(width)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids):
            x = self.tokens(ids) + self.positions(arange(ids.shape[1], device=ids.device))
            return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    return Model()


def count_operations(fields):
    """Floating-point operations of a token in training, both passes."""
    width, layers = fields["n_embd"], fields["n_layer"]
    weights = fields["vocab_size"] * width + 12 * layers * width**2
    return 6 * weights + 12 * layers * width * fields["n_positions"]


def measure_speed(options):
    """MFU of rung and of the plain loop, and the ratio."""
    fields = TINY_GPT2 if options.tiny else GPT2
    sides = {"plain": "plain PyTorch", "adamw_torch_fused": "rung, AdamW", "muon": "rung, Muon"}
    gpu = in_a_process(describe, options)
    peak = next((peak for name, peak in PEAK.items() if name in gpu), None)
    rates = {side: in_a_process(time_gpt2, options, side) for side in sides}
    for side, name in sides.items():
        ratio = rates[side] / rates["plain"]
        used = rates[side] * count_operations(fields) / peak if peak else None
        share = f"{used:.1%} MFU" if used is not None else "no MFU: the peak is not known"
        missed = used is not None and side == "adamw_torch_fused" and used < MFU_TARGET
        missed |= peak is not None and side == "adamw_torch_fused" and ratio < RATIO_TARGET
        note = f"; the target is {MFU_TARGET:.0%} and {RATIO_TARGET}x" if missed else ""
        yield True, f"{name}: {rates[side]:,.0f} tokens/s, {share}, {ratio:.2f}x{note}"


def climb(options):
    """`rung climb`, as it is typed; its table."""
    length = ["--minutes", "0.1"] if options.tiny else ["--minutes", str(options.minutes)]
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", str(Path(folder) / "climb"), "--quiet"]
        code, printed = in_a_process(run_rung, "climb", options.text, *length, *out)
    yield code == 0, f"rung climb {' '.join(length)}\n{printed}"


def describe(options):
    """The device in words."""
    import torch

    from rung.device import choose_device, describe_device

    if not options.tiny and not torch.cuda.is_available():
        raise RuntimeError("no GPU is at hand: --tiny runs all parts on a CPU")
    return f"{describe_device(choose_device())}, torch {torch.__version__}"


def import_all():
    """Import what the parts need, before any fork."""
    import torch._dynamo
    import torch.distributed.fsdp  # noqa: F401
    from transformers import GPT2LMHeadModel, Trainer  # noqa: F401

    import rung

    for name in ("climb", "train"):
        getattr(rung, name)


PARTS = {
    "ranks": check_ranks,
    "resume": check_resume,
    "precision": check_precision,
    "generation": check_generation,
    "speed": measure_speed,
    "climb": climb,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="a corpus, as `rung climb` takes it")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the climb")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    if Path(options.text).exists():
        options.text = str(Path(options.text).resolve())
    # Looking for a GPU by NVML begins nothing on it, so that forks may use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if options.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import_all()
    print(in_a_process(describe, options), flush=True)
    failed = []
    for name in options.parts.split(","):
        started = time.perf_counter()
        try:
            for good, line in PARTS[name](options):
                print(f"{'ok    ' if good else 'FAILED'} {line}", flush=True)
                failed += [] if good else [name]
        # The other parts are still of use.
        except Exception as error:
            print(f"FAILED {name}: {error}", flush=True)
            failed.append(name)
        print(f"       {name} took {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
