"""Time matrix products in float32 and in bfloat16, to see which is faster on this machine.

A processor may have bfloat16 products and still be slower in them, so `device.has_fast_bfloat16`
times both at one size. The sizes here are those of training.

    python benchmarks/device/precision.py > benchmarks/device/precision.txt
"""

import statistics
import time

import torch

from rung.device import choose_device, describe_device, has_fast_bfloat16

ROUNDS = 15
SIZES = [  # rows, inner, columns
    (512, 512, 512),
    (2048, 256, 256),
    (2048, 256, 688),
    (2048, 256, 8192),
    (1024, 768, 3072),
    (1024, 768, 50257),
]


def measure(rows, inner, columns, dtype):
    """GFLOP/s of the product, the median over the rounds."""
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype).T
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / statistics.median(seconds) / 1e9


def main():
    device = choose_device()
    chosen = "bfloat16" if has_fast_bfloat16(device) else "float32"
    print(
        f"{describe_device(device)}"
        f", torch {torch.__version__}; GFLOP/s; rung trains in {chosen} here"
    )
    print(f"{'rows x inner x columns':24}{'float32':>10}{'bfloat16':>10}{'ratio':>8}")
    for size in SIZES:
        plain, half = (measure(*size, dtype) for dtype in (torch.float32, torch.bfloat16))
        print(
            f"{' x '.join(map(str, size)):24}{plain:10,.0f}{half:10,.0f}{half / plain:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
