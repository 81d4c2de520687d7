"""Time causal attention on a CPU in bfloat16: two plain products beside the fused kernel.

Forward and backward passes are timed together.

    python benchmarks/models/attention.py > benchmarks/models/attention.txt
"""

import statistics
import time

import torch
from torch.nn import functional as F

from rung.device import describe_device
from rung.models.attention import _attend_unfused

REPEATS = 15


def seconds(attend, shape):
    times = []
    for _ in range(REPEATS):
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        started = time.perf_counter()
        attend(q, k, v).sum().backward()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def main():
    print(
        f"{describe_device(torch.device('cpu'))}"
        f", torch {torch.__version__}; median of {REPEATS - 3}"
    )
    print(f"{'batch x heads x tokens x size':<32}{'fused ms':>10}{'plain ms':>10}{'ratio':>8}")
    for shape in (
        (16, 4, 64, 32),
        (8, 4, 128, 48),
        (8, 2, 256, 64),
        (8, 4, 256, 64),
        (4, 4, 512, 64),
        (2, 4, 1024, 64),
    ):
        both = seconds(fused, shape), seconds(_attend_unfused, shape)
        name = " x ".join(map(str, shape))
        print(f"{name:<32}{1000 * both[0]:>10.2f}{1000 * both[1]:>10.2f}{both[0] / both[1]:>8.2f}")


if __name__ == "__main__":
    main()
