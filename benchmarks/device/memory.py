"""Time a training step with and without `retain_freed_memory`, in milliseconds.

Both ways take turns, each in a process of its own.

    python benchmarks/device/memory.py > benchmarks/device/memory.txt
"""

import statistics
import subprocess
import sys
import time

ROUNDS, STEPS = 5, 40
SHAPE = (8, 256, 1024)  # batch, tokens, vocabulary: what five minutes of `rung climb` train with


def time_step(keep: bool) -> float:
    """Milliseconds of the median step of a small Llama."""
    import torch
    from transformers import LlamaConfig

    from rung.device import retain_freed_memory
    from rung.models.llama3 import LlamaForCausalLM

    if keep:
        retain_freed_memory()
    batch, length, vocabulary = SHAPE
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )
    ids = torch.randint(vocabulary, (batch, length))
    times = []
    for _ in range(STEPS):
        before = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids).loss
        loss.backward()
        model.zero_grad()
        times.append(time.perf_counter() - before)
    return 1000 * statistics.median(times[5:])


def main() -> None:
    """Print both, and their ratio."""
    from rung.device import choose_device, describe_device

    if sys.argv[1:]:
        print(time_step(sys.argv[1] == "keep"))
        return
    print(
        f"forward and backward of a small Llama, {SHAPE[0]} x {SHAPE[1]} tokens: "
        f"{describe_device(choose_device())}"
    )
    found: dict[str, list[float]] = {"as it is": [], "keep": []}
    for _ in range(ROUNDS):
        for name, times in found.items():
            run = subprocess.run(
                [sys.executable, __file__, name], capture_output=True, text=True, check=True
            )
            times.append(float(run.stdout))
    plain, kept = (statistics.median(times) for times in found.values())
    print(f"as it is {plain:6.1f} ms\nkept     {kept:6.1f} ms\nratio    {plain / kept:6.2f}")


if __name__ == "__main__":
    main()
