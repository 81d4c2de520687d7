"""Time grouped-query attention of one new token on one core, in three ways.

The kernel is told of the groups; or the keys are repeated for it; or the queries of a group are
rows of one head, as rung has it.

    python benchmarks/models/grouped.py > benchmarks/models/grouped.txt
"""

import statistics
import time

import torch
from torch.nn import functional as F

from rung.device import describe_device
from rung.models.attention import attend

REPEATS = 100


def told(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def repeated(q, k, v):
    return F.scaled_dot_product_attention(
        q, *(t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    )


def as_rows(q, k, v):
    return attend(q, k, v, None)


def milliseconds(function, tensors):
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function(*tensors)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def main():
    torch.set_num_threads(1)
    print(
        f"{describe_device(torch.device('cpu'))}"
        f", of which one is used, torch {torch.__version__}; median "
        f"of {REPEATS}"
    )
    print(
        f"{'batch x heads, shared x keys':<32}{'told ms':>10}{'repeated':>10}{'rows ms':>10}"
        f"{'told/rows':>10}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        for batch, heads, groups, keys in ((4, 4, 2, 256), (1, 32, 8, 1024), (1, 32, 8, 4096)):
            shapes = ((batch, heads, 1, 64), (batch, groups, keys, 64), (batch, groups, keys, 64))
            tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
            times = [milliseconds(function, tensors) for function in (told, repeated, as_rows)]
            name = f"{batch} x {heads}, {groups} x {keys} {str(dtype).removeprefix('torch.')}"
            print(
                f"{name:<32}"
                + "".join(f"{t:>10.3f}" for t in times)
                + f"{times[0] / times[2]:>10.2f}"
            )


if __name__ == "__main__":
    main()
