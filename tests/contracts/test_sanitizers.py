"""Both C sources under AddressSanitizer and UndefinedBehaviorSanitizer, called as rung calls them.

What Python passes is recorded here, and passed again in a process of its own, where every array
ends where its memory does: what Python takes to be long enough, and is not, is found too.
"""

import ctypes
import os
import pickle
import random
import subprocess
import sys
from ctypes import CDLL, Structure, c_void_p
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from rung import compiler
from rung.compiler import Address
from rung.generation import native
from rung.models import fused, fused_attention, fused_layers
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.kv_cache import KVCache
from rung.models.llama3 import LlamaForCausalLM

REPLAY = Path(__file__).with_name("replay_calls.py")
CHECKS = (
    "-O0",
    "-g",
    "-fsanitize=address,undefined",
    "-fsanitize=float-cast-overflow",
    "-fno-sanitize-recover=all",
)
FLAGS = [
    flag for flag in compiler.FLAGS if flag != "-O3"
]  # the optimizer would take ten seconds over the checks


class Recorder(CDLL):
    """Stands in the place of a library, and keeps what goes into each call; `known` finds arrays
    that structs name.
    """

    def __init__(self, loaded):
        self.loaded, self.calls, self.known = loaded, [], lambda: ()

    def __getattr__(self, name):
        function = getattr(self.loaded, name)

        def call(*arguments):
            image = Image(self.known())
            kept = [image.keep(*pair) for pair in zip(function.argtypes, arguments, strict=True)]
            self.calls.append((name, kept, image.blocks, image.links))
            return function(*arguments)

        return call


class Image:
    """Copies of the memory that one call may read and write, and which of them points where."""

    def __init__(self, tensors):
        self.tensors = {tensor.data_ptr(): tensor for tensor in tensors}
        self.blocks, self.links, self.numbers = [], [], {}

    def keep(self, kind, value):
        if isinstance(value, Address):
            self.tensors.setdefault(value.value, value.tensor)
            return None, self.find(value.value)
        if hasattr(value, "_obj"):
            return None, self.add(value._obj, ctypes.addressof(value._obj), 1)
        return kind.__name__, value

    def find(self, place):
        """The number of the block for the tensor that begins there: there is none, if nobody keeps
        it alive.
        """
        if place not in self.numbers:
            tensor = self.tensors[place]
            self.numbers[place] = self.append(
                ctypes.string_at(place, tensor.numel() * tensor.element_size())
            )
        return self.numbers[place]

    def append(self, block):
        self.blocks.append(block)
        return len(self.blocks) - 1

    def add(self, structure, place, count):
        """A block for so many structures side by side, linked to what they point to."""
        kind, size = type(structure), ctypes.sizeof(structure)
        block = self.append(ctypes.string_at(place, count * size))
        for at in range(count):
            one = kind.from_address(place + at * size)
            for offset, target in self.targets(one):
                self.links.append((block, at * size + offset, target))
        return block

    def targets(self, structure):
        """Where in a structure a pointer stands, and the block that it points to."""
        for name, kind in structure._fields_:
            offset, value = getattr(type(structure), name).offset, getattr(structure, name)
            if issubclass(kind, Structure):
                yield from ((offset + inner, target) for inner, target in self.targets(value))
            elif kind is c_void_p and value:
                yield offset, self.find(value)
            elif issubclass(kind, ctypes._Pointer):
                yield (
                    offset,
                    self.add(value.contents, ctypes.addressof(value.contents), structure.layers),
                )


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """A function that makes the calls again, with a library that is checked."""
    runtime = find_runtime()

    def run(source, calls):
        folder = tmp_path_factory.mktemp("checked")
        library, file = folder / "checked.so", folder / "calls.pickle"
        made = subprocess.run(
            ["gcc", *FLAGS, *CHECKS, "-fopenmp", source, "-o", library, "-lm"], capture_output=True
        )
        assert made.returncode == 0, made.stderr.decode()
        file.write_bytes(pickle.dumps(calls))
        # Python forgets memory at its end; two threads, so that what each is to write to is seen.
        options = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-I", "-S", str(REPLAY), library, file]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | options)

    return run


def find_runtime():
    """The sanitizer's own library, which has to be loaded before Python's memory is taken."""
    if sys.platform != "linux":
        pytest.skip("the sanitizers are loaded before Python as Linux does it")
    try:
        asked = subprocess.run(
            ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no gcc on this machine")
    if not Path(asked.stdout.strip()).is_absolute():
        pytest.skip("gcc has no sanitizers on this machine")
    return asked.stdout.strip()


@pytest.fixture
def recorder(request, monkeypatch):
    """In the place of the library that a module calls."""
    module = request.param
    if module._compile() is None:
        pytest.skip("there is no C compiler here")
    recorder = Recorder(module._compile())
    monkeypatch.setattr(module, "_compile", lambda: recorder)
    return recorder


def fused_calls(recorder):
    """Shapes, strides and types as they come; labels among them that are not counted, and numbers
    that are none.
    """
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    for _ in range(40):
        rows, width, size = draw.randint(1, 40), draw.randint(1, 70), draw.randint(1, 90)
        scale = draw.choice([0.1, 1.0, 300.0])
        x = (
            scale * torch.randn(width, rows, generator=generator).T
            if draw.random() < 0.5
            else torch.randn(rows, width)
        )
        x[0, 0] = draw.choice([0.0, float("nan"), float("inf"), 1e30])
        x.requires_grad_()
        weight = torch.randn(size, width, requires_grad=True)
        labels = torch.randint(size, (rows, 3), generator=generator)[:, draw.choice([0, 2])]
        labels[draw.randrange(rows)] = -100
        with torch.autocast("cpu", torch.bfloat16, enabled=draw.random() < 0.5):
            normalised = fused.rms_norm(x, torch.ones(2 * width)[::2], 1e-5)
            loss = fused.linear_cross_entropy(normalised, weight, labels)
        torch.autograd.grad(loss + normalised.sum(), (x, weight))
    dtypes = [torch.float32] + [torch.bfloat16] * bool(recorder.has_pairs())
    for dtype in dtypes * 3:
        record_layer(draw, generator, dtype)
    return recorder.calls


def record_layer(draw, generator, dtype):
    """Attention in blocks, rotation and SwiGLU, forward and back, with numbers that are none."""
    batch, groups, steps, size = (
        *(draw.randint(1, 3), draw.randint(1, 2)),
        *(draw.randint(64, 150), 2 * draw.randint(1, 9)),
    )
    shape = (batch, groups * draw.randint(1, 3), steps, size)
    q = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    k = torch.randn(batch, groups, steps, size, generator=generator).to(dtype)
    k[0, 0, 0, 0] = draw.choice([0.0, float("nan"), float("inf"), 1e30])
    angles = torch.randn(draw.choice([1, batch]), 1, steps, size, generator=generator)
    mixed = fused_attention.attend_in_blocks(fused_layers.rotate(q, angles, angles), k, k)
    torch.autograd.grad(fused_layers.multiply_silu(mixed, mixed).sum(), q)


def step_calls(recorder):
    """Models of odd sizes, their weights of every type, texts with padding and without, few rows
    and many.
    """
    draw = random.Random(0)
    for number in range(18):
        model = make_odd_model(draw)
        step = native.make_native_step(model, draw.choice(list(native.TYPE_CODES)))
        step.spare_cores = draw.randint(0, 1)
        recorder.known = lambda step=step: [
            *(*step.kept, *(part for pair in step.memory for part in pair)),
            *(*step.buffers.buffers, step.buffers.scores, step.buffers.all_places),
            *(step.buffers.step_sizes, step.buffers.rounded),
        ]
        texts, longest = draw.randint(1, 9), draw.randint(6, 30)
        state = KVCache(longest)
        shape = (texts, step.groups, longest, step.size)
        state.keys_values = [(torch.randn(shape), torch.randn(shape)) for _ in step.layers]
        state.length = draw.randint(0, 3)
        step.begin(state, torch.tensor([draw.randint(0, state.length) for _ in range(texts)]))
        while (steps := draw.randint(1, 3)) + state.get_seq_length() <= longest and number % 2:
            step.decode(torch.randint(model.config.vocab_size, (texts, steps)))
        for rows in (texts, 1, draw.randint(1, texts)):
            read = [
                (
                    draw.randrange(model.config.vocab_size),
                    text * longest,
                    longest,
                    draw.choice([0, longest - 1, draw.randrange(longest)]),
                )
                for text in draw.sample(range(texts), rows)
            ]
            step.step(read, wanted=rows)
    return recorder.calls


def make_odd_model(draw):
    heads, size = draw.choice([1, 2, 3, 6]), draw.choice([2, 6, 16, 34])
    groups = draw.choice([count for count in range(1, heads + 1) if heads % count == 0])
    inner, layers, vocabulary = draw.randint(1, 90), draw.randint(1, 2), draw.randint(5, 70)
    kind = torch.bfloat16 if draw.random() < 0.3 else torch.float32
    if draw.random() < 0.5:
        odd = {
            "n_embd": heads * size,
            "n_head": heads,
            "n_inner": inner,
            "n_layer": layers,
            "n_positions": 32,
        }
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **odd)).to(kind).eval()
    odd = {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "num_hidden_layers": layers,
    }
    odd |= {"hidden_size": heads * draw.randint(1, 14), "intermediate_size": inner}
    odd |= {"attention_bias": draw.random() < 0.5, "mlp_bias": draw.random() < 0.5}
    return (
        LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, pad_token_id=0, **odd)).to(kind).eval()
    )


@pytest.mark.conditions
@pytest.mark.parametrize(
    ("recorder", "make"), [(fused, fused_calls), (native, step_calls)], indirect=["recorder"]
)
def test_c_stays_within_its_arrays_and_within_what_c_defines(recorder, make, check):
    with torch.inference_mode(make is step_calls):
        calls = make(recorder)
    done = check(fused.SOURCE if make is fused_calls else native.STEP_SOURCE, calls)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(calls)} calls\n" and len(calls) > 60


@pytest.mark.parametrize("recorder", [fused], indirect=True)
def test_a_number_beyond_an_array_is_seen(recorder, check):
    """So that the test above can fail: one label too few."""
    name, arguments, blocks, links = next(
        call for call in fused_calls(recorder) if call[0] == "cross_entropy"
    )
    blocks[arguments[3][1]] = blocks[arguments[3][1]][:-8]
    done = check(fused.SOURCE, [(name, arguments, blocks, links)])
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
