"""Time matrix products in float32 and in bfloat16, to see which is faster on this machine.

A processor may have bfloat16 products and still be slower in them, so `device.has_fast_bfloat16`
times both at one size. The sizes here are those of training. Without gradients oneDNN may multiply
float32 in the place of MKL, which torch takes (`device.is_onednn_faster`).

    python benchmarks/device/precision.py > benchmarks/device/precision.txt
"""

import statistics
import time

import torch

from rung.device import choose_device, describe_device, has_fast_bfloat16, is_onednn_faster

ROUNDS = 15
SIZES = [  # rows, inner, columns
    (512, 512, 512),
    (2048, 256, 256),
    (2048, 256, 688),
    (2048, 256, 8192),
    (1024, 768, 3072),
    (1024, 768, 50257),
]


def multiply_by_onednn(left, right):
    return torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")


def measure(rows, inner, columns, dtype, multiply=torch.matmul):
    """GFLOP/s of the product, the median over the rounds."""
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype).T
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        multiply(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / statistics.median(seconds) / 1e9


def main():
    device = choose_device()
    chosen = "bfloat16" if has_fast_bfloat16(device) else "float32"
    print(
        f"{describe_device(device)}"
        f", torch {torch.__version__}; GFLOP/s; rung trains in {chosen} here"
    )
    print(f"without gradients oneDNN multiplies float32 here: {is_onednn_faster()}")
    heads = ("float32", "bfloat16", "ratio", "float32, oneDNN", "ratio")
    print(f"{'rows x inner x columns':24}{heads[0]:>10}{heads[1]:>10}{heads[2]:>8}", end="")
    print(f"{heads[3]:>18}{heads[4]:>8}")
    for size in SIZES:
        plain, half = (measure(*size, dtype) for dtype in (torch.float32, torch.bfloat16))
        other = measure(*size, torch.float32, multiply_by_onednn)
        print(
            f"{' x '.join(map(str, size)):24}{plain:10,.0f}{half:10,.0f}{half / plain:8.2f}"
            f"{other:18,.0f}{other / plain:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
