"""What share of the machine's matrix products the training step of a small model reaches.

The models are those that the dial chooses for a vocabulary of 1,024, nearest to some numbers of
weights, each with its rung's rows. A step is forward, back, clipping and Muon's own. It needs six
operations for each token and weight that is multiplied, and for each number of a query that meets a
key in the past; whatever else it multiplies, Muon's products among it, counts for nothing. The
machine's products are of large square matrices, in turn with the steps, the best of each. Below,
the profiler says where a step's time goes.

    python benchmarks/training/products.py > benchmarks/training/products.txt

With one thread (OMP_NUM_THREADS=1) CPU time is measured, which other processes change little.
"""

import re
import time
from functools import partial

import torch
from torch import nn

from rung.device import choose_device, describe_device, has_fast_bfloat16, retain_freed_memory
from rung.models import build_model, count_parameters, make_config
from rung.models.registry import RUNGS
from rung.training.arguments import DEFAULT_BATCH_SIZE
from rung.training.optimizer import Muon, group_parameters
from rung.workflows.budget import LAYERS, WIDTH_OF_A_LAYER
from rung.workflows.scaling import SCALING_LAWS

RUNGS_MEASURED = ("llama3", "gpt2")
VOCABULARY = 1024
WEIGHTS = (0.25e6, 1e6, 4e6)
SQUARE = 1024  # rows and columns of the machine's products
SECONDS = 4.0  # of a row's steps and products
PROFILED = 5  # steps
# The operators of a group, by the profiler's names for them; a name is of the first group that it
# fits.
GROUPS = {
    "products": r"^aten::(addmm|linear|matmul|mm)$",
    "attention": r"Attention|attention|[Ss]oftmax|aten::(baddbmm|bmm)",
    "loss": r"CrossEntropy",
    "norms": r"RMSNorm|layer_norm",
    "activations": r"SwiGLU|gelu|silu|Rotation",
}


def find_config(rung, weights):
    """The config of the dial's shape that is nearest to so many weights."""
    sizes = {}
    for width in SCALING_LAWS[rung].widths:
        fields = {
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "num_hidden_layers": max(LAYERS, width // WIDTH_OF_A_LAYER),
            "max_position_embeddings": RUNGS[rung].context,
        }
        config = make_config(rung, None, RUNGS[rung].model | fields)
        with torch.device("meta"):
            size = count_parameters(build_model(rung, config))
        sizes[abs(size / weights - 1)] = config
        if size > weights:
            return sizes[min(sizes)]
    return None


def make_step(rung, config, dtype):
    """A function that takes a training step, its optimizer's part, and its operations."""
    torch.manual_seed(0)
    model = build_model(rung, config).train()
    rows = RUNGS[rung].train.get("per_device_train_batch_size", DEFAULT_BATCH_SIZE)
    ids = torch.randint(3, VOCABULARY, (rows, RUNGS[rung].context))
    groups = group_parameters(model, weight_decay=0.1)
    optimizer = Muon(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, dtype=dtype)

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, skip_logits=True).loss
        loss.backward()
        update()

    return step, update, count_operations(model, *ids.shape)


def count_operations(model, rows, length):
    """The operations of a step's products, forward and back."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = [p for p in model.parameters() if p.ndim == 2 and id(p) not in tables]
    config = model.config
    # A token's queries meet half of the keys on average, twice: by scores, and by weighted values.
    met = config.num_hidden_layers * config.hidden_size * (length + 1)
    return 6 * rows * length * (sum(p.numel() for p in weights) + met)


def measure(*actions):
    """The least seconds that each takes, in turn."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for action in actions * 2:
        action()
    times, end = [[] for _ in actions], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for action, found in zip(actions, times, strict=True):
            begun = clock()
            action()
            found.append(clock() - begun)
    return map(min, times)


def profile(action):
    """The microseconds of each group of operators, the others, and all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(PROFILED):
            action()
    times = dict.fromkeys([*GROUPS, "other"], 0.0)
    for event in found.key_averages():
        fitting = (group for group, names in GROUPS.items() if re.search(names, event.key))
        times[next(fitting, "other")] += event.self_cpu_time_total
    return times | {"all": sum(times.values())}


def divide_time(step, update):
    """The share of a step that each group of operators takes; the optimizer's are a group too."""
    whole, own = profile(step), profile(update)
    shares = {group: (whole[group] - own[group]) / whole["all"] for group in (*GROUPS, "other")}
    return shares | {"optimizer": own["all"] / whole["all"]}


def print_row(name, rung, config, dtype):
    """The speed of a step beside the machine's products; returns how its time is divided."""
    step, update, operations = make_step(rung, config, dtype)
    square = torch.randn(SQUARE, SQUARE).to(dtype)
    product = partial(torch.mm, square, square, out=torch.empty_like(square))
    seconds, least = measure(step, product)
    reached, machine = operations / seconds / 1e9, 2 * SQUARE**3 / least / 1e9
    print(
        f"{name:40}{1000 * seconds:9.1f}{reached:11.1f}{machine:9.1f}{reached / machine:8.0%}",
        flush=True,
    )
    return divide_time(step, update)


def main():
    retain_freed_memory()
    device = choose_device()
    print(f"{describe_device(device)}; threads: {torch.get_num_threads()}\n")
    print(f"{'':40}{'ms a step':>9}{'GFLOP/s':>11}{'machine':>9}{'share':>8}")
    dtypes = [torch.float32, *([torch.bfloat16] if has_fast_bfloat16(device) else [])]
    shares = {}
    for dtype in dtypes:
        for rung in RUNGS_MEASURED:
            for weights in WEIGHTS:
                config = find_config(rung, weights)
                name = f"{rung} of {weights / 1e6:g} M, {config.hidden_size} wide, {dtype}"
                name = name.replace("torch.", "")
                shares[name] = print_row(name, rung, config, dtype)
    print(f"\n{'share of the time':40}" + "".join(f"{group:>12}" for group in shares[name]))
    for name, divided in shares.items():
        print(f"{name:40}" + "".join(f"{share:12.0%}" for share in divided.values()))


if __name__ == "__main__":
    main()
