"""Time what Muon adds to a step beside AdamW, and compare losses with matrices in blocks and whole.

Milliseconds of CPU time on one thread: forward and backward together, and the step of each
optimizer alone, at 1, 7, 30 and 67 million weights. "Blocks" is Muon with each matrix of 512 rows
and columns or more cut into blocks of 256, which rung does not do. The losses are those of a small
Llama after equal steps over the standard library's own source as bytes, its matrices whole, in two
and in four blocks.

    python benchmarks/training/muon.py > benchmarks/training/muon.txt
"""

import argparse
import itertools
import time

import numpy
import torch

from rung.data.packing import BlockDataset, PackedTokens
from rung.data.sources import read_python_source
from rung.device import choose_device, describe_device, retain_freed_memory
from rung.models import build_model, make_config
from rung.training import optimizer
from rung.training.optimizer import Muon, group_parameters

WHOLE = optimizer.orthogonalize
ROWS = {  # rung, width, layers, tokens of a row, rows, vocabulary, times
    "llama3, 1 M": ("llama3", 160, 3, 512, 4, 1024, 8),
    "llama3, 6 M": ("llama3", 256, 6, 128, 16, 8192, 4),
    "llama3, 30 M": ("llama3", 512, 8, 256, 4, 4096, 2),
    "gpt2, 67 M": ("gpt2", 768, 4, 128, 8, 50257, 2),
}
WIDTH, LAYERS, LENGTH, BATCH, STEPS = 128, 2, 128, 4, 200  # of the losses
WIDE, BLOCK = 512, 256


def build(rung, width, layers, length, vocabulary):
    torch.manual_seed(0)
    fields = {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": vocabulary}
    fields |= {"max_position_embeddings": length, "tie_word_embeddings": vocabulary > 1024}
    return build_model(rung, make_config(rung, None, fields)).train()


def make_optimizer(kind, model):
    groups = group_parameters(model, weight_decay=0.1)
    if kind == "AdamW":
        for group in groups:
            group["muon"] = False
    return Muon(groups, lr=6e-3, betas=(0.9, 0.95), eps=1e-8, dtype=torch.float32)


def orthogonalize_in_blocks(wide, block):
    """A function that orthogonalizes blocks of rows, or of columns where these are fewer, alone."""

    def orthogonalize(matrices):
        tall = matrices.shape[-2] > matrices.shape[-1]
        x = matrices.mT.contiguous() if tall else matrices
        count = x.shape[-2] // block if x.shape[-2] >= wide and x.shape[-2] % block == 0 else 1
        parts = WHOLE(x.unflatten(-2, (count, -1)).flatten(0, 1))
        x = parts.reshape(x.shape)
        return x.mT if tall else x

    return orthogonalize


def time_best(work, times):
    work()
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return 1000 * min(found)


def print_costs():
    print(
        f"{'':16}{'weights':>10}{'model':>9}{'AdamW':>8}{'Muon':>9}{'blocks':>9}{'Muon/AdamW':>12}"
    )
    for name, (rung, width, layers, length, batch, vocabulary, times) in ROWS.items():
        model = build(rung, width, layers, length, vocabulary)
        ids = torch.randint(3, vocabulary, (batch, length))

        def pass_through(model=model, ids=ids):
            model.zero_grad()
            model(input_ids=ids, labels=ids, skip_logits=True).loss.backward()

        took = {"model": time_best(pass_through, times)}
        blocks = orthogonalize_in_blocks(WIDE, BLOCK)
        for kind, way in (("AdamW", WHOLE), ("Muon", WHOLE), ("blocks", blocks)):
            optimizer.orthogonalize = way
            took[kind] = time_best(make_optimizer(kind, model).step, times)
        optimizer.orthogonalize = WHOLE
        steps = [took["model"] + took[kind] for kind in ("Muon", "AdamW")]
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"{name:16}{weights:10,}{took['model']:9.1f}{took['AdamW']:8.1f}{took['Muon']:9.1f}"
            f"{took['blocks']:9.1f}{steps[0] / steps[1]:12.2f}",
            flush=True,
        )


def train_bytes(data, block, seed):
    """Bits per byte on text not read, after so many steps; matrices in blocks of so many rows."""
    optimizer.orthogonalize = orthogonalize_in_blocks(block, block) if block else WHOLE
    model = build("llama3", WIDTH, LAYERS, LENGTH, 256)
    torch.manual_seed(seed)
    muon = make_optimizer("Muon", model)
    parts = data[:-100_000], data[-100_000:]
    blocks, held_out = (BlockDataset(PackedTokens(tokens=p, starts=[0]), LENGTH, 0) for p in parts)
    order = torch.randperm(len(blocks)).tolist()
    for step in range(STEPS):
        factor = min(1, (step + 1) / (0.05 * STEPS), (STEPS - step) / (0.5 * STEPS))
        for group in muon.param_groups:
            group["lr"] = 6e-3 * factor
        rows = blocks.__getitems__(order[BATCH * step : BATCH * (step + 1)])
        model(**rows, skip_logits=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        muon.zero_grad()
    optimizer.orthogonalize = WHOLE
    with torch.no_grad():
        loss = model.eval()(**held_out.__getitems__(list(range(400))), skip_logits=True).loss
    return loss.item() / numpy.log(2)


def print_losses(seeds):
    texts = (text for text, _ in itertools.islice(read_python_source(), 300))
    data = numpy.frombuffer("".join(texts).encode()[:3_000_000], dtype=numpy.uint8)
    data = data.astype(numpy.uint16)
    print(f"\nbits per byte after {STEPS} steps, llama3 of {WIDTH} channels and {LAYERS} layers")
    for name, block in {"whole": None, "two blocks": 64, "four blocks": 32}.items():
        found = [train_bytes(data, block, seed) for seed in range(seeds)]
        print(f"{name:12}" + " ".join(f"{value:.4f}" for value in found), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-costs", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    retain_freed_memory()
    print(f"{describe_device(choose_device())}; one thread; milliseconds of CPU time")
    if not chosen.no_costs:
        print_costs()
    if chosen.seeds:
        print_losses(chosen.seeds)


if __name__ == "__main__":
    main()
