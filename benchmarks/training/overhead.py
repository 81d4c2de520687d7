"""Time a step of `rung train` beside the same step in a bare loop, to see the Trainer's cost.

Both have the same model, the same optimizer and batches of the same size from the same text. The
loop does what a step must do and nothing else. The models are small, because there a step is short
and whatever is done beside it weighs most. Both take turns in one process.

    python benchmarks/training/overhead.py > benchmarks/training/overhead.txt
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy
import torch

from rung.data.packing import BlockDataset, PackedTokens
from rung.data.tokenizer_training import build_tokenizer
from rung.device import choose_device, describe_device, has_fast_bfloat16, retain_freed_memory
from rung.models import build_model, make_config
from rung.training.callbacks import TrainingCallbacks
from rung.training.optimizer import Muon, group_parameters
from rung.training.settings import TrainSettings
from rung.training.train import train

STEPS = 60
WARM_UP = 10  # steps not timed
ROUNDS = 3
ROWS = {  # rung, width, layers, tokens of a block, blocks of a batch, vocabulary
    "llama3 of 0.9 M, 24 x 64 tokens": ("llama3", 128, 4, 64, 24, 512),
    "llama3 of 0.9 M, 8 x 256 tokens": ("llama3", 128, 4, 256, 8, 1024),
    "gpt2 of 1.0 M, 8 x 256 tokens": ("gpt2", 128, 4, 256, 8, 1024),
}


def prepare(rung, width, layers, length, batch, vocabulary):
    """A model that has learned nothing, its tokenizer, and random tokens: what they say costs no
    time.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer(
        "char", ["".join(map(chr, range(0x4E00, 0x4E00 + vocabulary)))]
    )  # only its size counts
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    model = build_model(
        rung, make_config(rung, tokenizer, {**fields, "max_position_embeddings": length})
    )
    tokens = numpy.random.default_rng(0).integers(3, vocabulary, 2_000_000).astype(numpy.uint16)
    return model, tokenizer, PackedTokens(tokens=tokens, starts=numpy.zeros(1))


def by_trainer(model, tokenizer, packed, length, batch):
    """When each step ended."""
    times = []
    callbacks = TrainingCallbacks(
        evaluate=lambda model: 0.0,
        sample=lambda model: "",
        on_progress=lambda now: times.append(clock()),
    )
    arguments = {"per_device_train_batch_size": batch, "eval_strategy": "no", "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as out:
        train(
            model,
            tokenizer,
            packed,
            Path(out),
            TrainSettings(steps=STEPS, arguments=arguments),
            callbacks,
        )
    return times


def by_loop(model, tokenizer, packed, length, batch):
    """The same: read, forward, back, clip, step."""
    blocks, times = BlockDataset(packed, length, tokenizer.pad_token_id), []
    order = torch.randperm(len(blocks)).tolist()
    dtype = torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32
    groups = group_parameters(model.train(), weight_decay=0.1)
    optimizer = Muon(groups, lr=6e-3, betas=(0.9, 0.95), eps=1e-8, dtype=dtype)
    for step in range(STEPS):
        rows = blocks.__getitems__(order[step * batch : (step + 1) * batch])
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            loss = model(**rows, skip_logits=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(clock())
    return times


def clock():
    return time.perf_counter()


def main():
    retain_freed_memory()
    print(
        f"{describe_device(choose_device())}"
        f"; milliseconds a step, the median of {ROUNDS} rounds of "
        f"{STEPS} steps"
    )
    print(f"{'':36}{'bare loop':>10}{'Trainer':>10}{'ratio':>8}")
    for name, row in ROWS.items():
        found = {by_loop: [], by_trainer: []}
        for _ in range(ROUNDS):
            for way, steps in found.items():
                times = way(*prepare(*row), *row[3:5])[WARM_UP:]
                steps += [1000 * (b - a) for a, b in itertools.pairwise(times)]
        bare, trainer = map(statistics.median, found.values())
        print(f"{name:36}{bare:10.2f}{trainer:10.2f}{trainer / bare:8.3f}", flush=True)


if __name__ == "__main__":
    main()
