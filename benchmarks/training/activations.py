"""Measure memory and time of training that keeps activations beside computing them again.

Each line is a process of its own: forward and backward passes of one batch, under autocast where
bfloat16 is fast. Memory is counted above what the process had before.

    python benchmarks/training/activations.py > benchmarks/training/activations.txt
"""

import resource
import subprocess
import sys
import time

import torch
from transformers import GPT2Config, LlamaConfig

from rung.device import describe_device, has_fast_bfloat16
from rung.models import build_model

LAYERS, WIDTH, VOCABULARY, ROWS, LENGTH = 12, 512, 4096, 8, 512
IDS = {"bos_token_id": None, "eos_token_id": None}
SHAPES = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=8, n_positions=LENGTH,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **IDS,
    ),
    "llama3": lambda: LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=1376, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=LENGTH, **IDS,
    ),
}  # fmt: skip


def main():
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2] == "again")
        return
    machine = describe_device(torch.device("cpu"))
    print(
        f"$ python benchmarks/training/activations.py          # {machine}, "
        f"{torch.get_num_threads()} used"
    )
    print(f"{LAYERS} layers of {WIDTH}, vocabulary of {VOCABULARY}, {ROWS} rows of {LENGTH} tokens")
    print(f"{'model':>8}  {'activations':>11}  {'MiB above':>9}  {'CPU s':>7}", flush=True)
    for name in SHAPES:
        for how in ("kept", "again"):
            subprocess.run([sys.executable, __file__, name, how], check=True)


def measure(name, again):
    torch.manual_seed(0)
    model = build_model(name, SHAPES[name]()).train()
    if again:
        model.activation_checkpointing_enable()
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH))
    for parameter in model.parameters():  # there before, either way
        parameter.grad = torch.zeros_like(parameter)
    before, times = peak(), []
    for _ in range(3):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(torch.device("cpu"))):
            loss = model(ids, labels=ids).loss
        loss.backward()
        times.append(time.process_time() - started)
    how = "again" if again else "kept"
    print(
        f"{name:>8}  {how:>11}  {(peak() - before) / 2**10:>9,.0f}  {min(times):>7.2f}", flush=True
    )


def peak():
    """The process's largest memory so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
