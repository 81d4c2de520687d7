"""Prefill and decode transformers by `step.c`, as fast as weights are read from memory.

Without a C compiler, or for a model with parts that `step.c` does not know, the model's own forward
pass does both; a test holds the two together.
"""

import ctypes
import sys
import time
from collections.abc import Iterator, Sequence
from ctypes import byref, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rung.compiler import Address, compile_source
from rung.device import CoreWatch, has_fast_bfloat16
from rung.generation.panels import fill_rows, make_panels
from rung.generation.quantize import quantize_int8
from rung.generation.structures import LAYER_PRODUCTS, Layer, Norm, Product, StepModel
from rung.generation.supported import is_supported
from rung.generation.thread_trials import ThreadTrials
from rung.models.base import CausalModel
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.kv_cache import KVCache
from rung.models.llama3 import LlamaForCausalLM, rotary_cos_sin

STEP_SOURCE = Path(__file__).with_name("step.c")
TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
START, ROOM, FIRST, AT = range(4)  # the fields of a `place` in step.c
# Tokens of prompts that are read together. Their activations stay in the processor's cache, and
# reading the weights takes a small part of the time.
PREFILL_ROWS = 192
SHORT_PROMPT = 32  # tokens that are read sooner here than by any forward pass


class NativeStep:
    """Decodes a batch of texts by one model in C."""

    def __init__(self, model: CausalModel, compiled: ctypes.CDLL, weights: torch.dtype) -> None:
        self.model = model
        self.compiled = compiled
        # Rows of a block, blocks of a panel, and rows that are attended together, as in step.c.
        self.lanes, self.panel, self.queries = (
            c() for c in (compiled.lanes, compiled.panel, compiled.queries)
        )
        self.weights = weights
        # Where bfloat16 products are fast in hardware, the forward pass of a bfloat16 model reads
        # longer prompts sooner. Otherwise this step reads any prompt as soon, and most much sooner.
        is_slower = model.dtype == weights == torch.bfloat16 and has_fast_bfloat16(model.device)
        self.longest_prompt = SHORT_PROMPT if is_slower else sys.maxsize
        self.spare_cores = 0  # beside torch's threads
        self.trials = ThreadTrials(CoreWatch().count_free)
        self.kept: list[Tensor] = []  # what the structures point to
        self.max_length = 0  # of a text, in tokens
        config = model.config
        self.heads, self.width = config.num_attention_heads, config.hidden_size
        self.groups = getattr(config, "num_key_value_heads", self.heads)
        self.size = getattr(config, "head_dim", self.width // self.heads)
        self.layers = list(self._gpt2() if isinstance(model, GPT2LMHeadModel) else self._llama())
        self.last = self._norm(
            model.transformer.ln_f if isinstance(model, GPT2LMHeadModel) else model.model.norm
        )
        self.head = self._product(model.lm_head.weight)
        # Products with weights for a row, and with keys and values for a token that it attends to.
        products = [getattr(layer, name) for layer in self.layers for name in LAYER_PRODUCTS]
        self.row_work = sum(part.rows * part.columns for part in products)
        self.key_work = 2 * len(self.layers) * self.heads * self.size

    def fits(self) -> bool:
        """Whether all layers have products of the same sizes, as `step.c` takes them to have."""
        attended, shared, inner = (
            self.heads * self.size,
            self.groups * self.size,
            self.layers[0].up.rows,
        )
        sizes = dict.fromkeys("kv", (shared, self.width)) | dict.fromkeys(
            ("gate", "up"), (inner, self.width)
        )
        sizes |= {
            "q": (attended, self.width),
            "o": (self.width, attended),
            "down": (self.width, inner),
        }
        products = [
            (getattr(layer, name), size) for layer in self.layers for name, size in sizes.items()
        ]
        products.append((self.head, (self.head.rows, self.width)))
        alike = all((part.rows, part.columns) == size for part, size in products if part.weight)
        return alike and self.heads % self.groups == 0

    def begin(self, state: KVCache, padding: Int[Tensor, " B"]) -> None:
        """Continue from the tokens in `state`; the first `padding` columns of each row are none."""
        if bool(((padding < 0) | (padding > state.get_seq_length())).any()):
            raise ValueError(
                f"{padding.tolist()} columns of padding, but {state.get_seq_length()} tokens are "
                f"there"
            )
        rows = [(keys.float(), values.float()) for keys, values in state.keys_values]
        self.use_memory(rows, state.capacity)
        if self.tokens != len(padding) * state.capacity:
            raise ValueError(
                f"padding of {len(padding)} texts, but memory for {self.tokens} tokens of "
                f"{state.capacity} each"
            )
        self.state, self.padding, state.keys_values = state, padding, rows

    def use_memory(self, rows: list[tuple[Tensor, Tensor]], max_length: int) -> None:
        """Keep keys and values in these float32 tensors; a text has up to `max_length` tokens."""
        places = [
            [Address(part, part.shape, torch.float32).value for part in pair] for pair in rows
        ]
        numbers = {part.numel() for pair in rows for part in pair}
        tokens, rest = divmod(max(numbers, default=0), self.groups * self.size)
        if len(numbers) != 1 or rest or len(rows) != len(self.layers):
            raise ValueError(
                f"memory of {numbers} numbers in {len(rows)} layers: {len(self.layers)} must have "
                f"as many"
            )
        turns = None
        if isinstance(self.model, LlamaForCausalLM):
            rotation = rotary_cos_sin(
                torch.arange(max_length)[None], self.model.config, torch.float32
            )
            turns = torch.stack([part[0, 0] for part in rotation], dim=1)  # S 2 K
        self.turns, self.max_length, self.tokens, self.memory = turns, max_length, tokens, rows
        self.buffers: _Buffers | None = None
        for layer, (keys, values) in zip(self.layers, places, strict=True):
            layer.keys, layer.values = keys, values

    def prefill(
        self, prompts: Sequence[Sequence[int]], capacity: int
    ) -> tuple[KVCache, Float[Tensor, "B V"]]:
        """Read prompts into new memory for `capacity` tokens of each, aligned to the right.

        Returns what holds their keys and values, and the logits after each prompt, which the next
        call overwrites.
        """
        width, shape = max(map(len, prompts)), (len(prompts), self.groups, capacity, self.size)
        state = KVCache(capacity)
        state.keys_values = [(torch.zeros(shape), torch.zeros(shape)) for _ in self.layers]
        state.written = width
        self.begin(state, torch.tensor([width - len(prompt) for prompt in prompts]))
        # The last token of each prompt stands in the last rows, of which logits are wanted.
        rows = [
            (token, text, width - len(prompt) + at)
            for text, prompt in enumerate(prompts)
            for at, token in enumerate(prompt[:-1])
        ] + [(prompt[-1], text, width - 1) for text, prompt in enumerate(prompts)]
        table, end = torch.tensor(rows), max(len(prompts), (len(rows) - 1) % PREFILL_ROWS + 1)
        parts = [*table[:-end].split(PREFILL_ROWS), table[-end:]]
        for part in filter(len, parts):
            tokens, texts, at = part.unbind(1)
            buffers = self._find_buffers(len(part))
            buffers.use(len(part))
            buffers.place(texts, self.padding, capacity)
            buffers.places[:, AT] = at
            wanted = len(prompts) if part is parts[-1] else 0
            logits = self._run(buffers, tokens, at - self.padding[texts], wanted)
        return state, logits

    def decode(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Append `tokens` and return the logits after each; the next call overwrites them."""
        texts, steps = tokens.shape
        at = self.state.get_seq_length()
        if texts != len(self.padding) or at + steps > self.max_length:
            most = f"{len(self.padding)} texts of {self.max_length}"
            raise ValueError(f"{texts} texts of {at + steps} tokens, but there is room for {most}")
        buffers = self._find_buffers(texts * steps)
        if buffers.shape != (texts, steps):
            buffers.lay_out(steps, self.padding, self.max_length)
        torch.add(buffers.steps, at, out=buffers.places[:, AT])
        positions = buffers.places[:, AT] - buffers.places[:, FIRST]
        logits = self._run(buffers, tokens.flatten(), positions, texts * steps)
        self.state.length, self.state.written = at, steps
        return logits.view(texts, steps, -1)

    def step(self, rows: Sequence[tuple[int, int, int, int]], wanted: int) -> Float[Tensor, "W V"]:
        """Read tokens of texts, and return the logits after the last `wanted` of them.

        The next call overwrites them. A row is a token, the tokens that stand before its text in
        memory, those that its text has room for, and the token's place in its text.
        """
        for _, start, room, at in rows:
            if not (0 <= at < min(room, self.max_length) and 0 <= start <= self.tokens - room):
                raise ValueError(
                    f"a token stands at {at} of a text that has room for {room} from {start} on, "
                    f"but there is room for {self.max_length} of each text and {self.tokens} of all"
                )
        buffers = self._find_buffers(len(rows))
        if buffers.shape is not None:
            buffers.use(len(rows))
        # The fields of a place, without padding, and the token.
        table = torch.tensor([(start, room, 0, at, token) for token, start, room, at in rows])
        buffers.places.copy_(table[:, :-1])
        return self._run(buffers, table[:, -1], table[:, AT], wanted)

    def _find_buffers(self, rows: int) -> "_Buffers":
        """Return the one set of buffers; a larger step makes it anew."""
        if self.buffers is None or self.buffers.max_rows < rows:
            self.buffers = None  # so that the old ones are freed first
            self.buffers = _Buffers(self, rows)
        if len(self.buffers.places) != rows:
            self.buffers.use(rows)
        return self.buffers

    def _run(
        self, buffers: "_Buffers", tokens: Int[Tensor, " R"], at: Int[Tensor, " R"], wanted: int
    ) -> Float[Tensor, "W V"]:
        if isinstance(self.model, GPT2LMHeadModel):
            parts = self.model.transformer
            buffers.x.copy_(
                torch.embedding(parts.wte.weight, tokens) + torch.embedding(parts.wpe.weight, at)
            )
        else:
            buffers.x.copy_(torch.embedding(self.model.model.embed_tokens.weight, tokens))
        turns = self.turns[at] if self.turns is not None else None
        pointer = (
            Address(turns, (len(tokens), 2, self.size), torch.float32)
            if turns is not None
            else None
        )
        threads, most = torch.get_num_threads(), len(buffers.scores)
        most = min(threads + self.spare_cores, most)
        work = len(tokens) * self.row_work + wanted * self.head.rows * self.head.columns
        work += sum(at.tolist()) * self.key_work
        buffers.described.threads = self.trials.choose(work, threads, most)
        logits, buffers.described.wanted = buffers.logits[:wanted], wanted
        started = time.perf_counter()
        self.compiled.step(
            byref(buffers.described), pointer, Address(logits, logits.shape, torch.float32)
        )
        self.trials.record(work, time.perf_counter() - started)
        return logits

    def _llama(self) -> Iterator[Layer]:
        for block in self.model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            names = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
            names |= {"o": attention.o_proj}
            names |= {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
            yield Layer(
                before_attention=self._norm(block.input_layernorm),
                before_mlp=self._norm(block.post_attention_layernorm),
                scale=self.model.config.head_dim**-0.5,
                **{
                    name: self._product(linear.weight, linear.bias)
                    for name, linear in names.items()
                },
            )

    def _gpt2(self) -> Iterator[Layer]:
        """Describe GPT-2's layers: weights are stored (in, out), with q, k and v side by side."""
        size = self.model.config.n_embd // self.model.config.n_head
        for block in self.model.transformer.h:
            attention, mlp = block.attn, block.mlp
            joint = zip(
                "qkv",
                attention.c_attn.weight.T.chunk(3),
                attention.c_attn.bias.chunk(3),
                strict=True,
            )
            products = {name: self._product(weight, bias) for name, weight, bias in joint}
            for name, layer in (("o", attention.c_proj), ("up", mlp.c_fc), ("down", mlp.c_proj)):
                products[name] = self._product(layer.weight.T, layer.bias)
            yield Layer(
                before_attention=self._norm(block.ln_1),
                before_mlp=self._norm(block.ln_2),
                scale=attention.scale * size**-0.5,
                **products,
            )

    def _product(self, weight: Float[Tensor, "N D"], bias: Tensor | None = None) -> Product:
        scale, rows = None, weight.shape[0]
        if self.weights == torch.int8:
            weight, scale = quantize_int8(weight)
        panels = make_panels(weight.detach().to(self.weights), self.lanes, self.panel)
        filled = rows + -rows % self.lanes
        each = [
            None if t is None else self._keep(fill_rows(t, self.lanes), (filled,), torch.float32)
            for t in (scale, bias)
        ]
        return Product(
            *(self._keep(panels, panels.shape, self.weights), *each),
            *(rows, weight.shape[1], TYPE_CODES[self.weights]),
        )

    def _norm(self, module: nn.Module) -> Norm:
        parameters = dict(module.named_parameters())
        each = (parameters.get(name) for name in ("weight", "bias"))
        weight, bias = (
            None if t is None else self._keep(t, (self.width,), torch.float32) for t in each
        )
        return Norm(weight, bias, module.eps)

    def _keep(self, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Return the address of the values, contiguous and as `dtype`; copy only where needed."""
        self.kept.append(tensor.detach().to(dtype).contiguous())
        return Address(self.kept[-1], shape, dtype).value


class _Buffers:
    """The memory that a step over up to `max_rows` rows writes to.

    `places` says which text each row belongs to, and where it stands there.
    """

    def __init__(self, step: NativeStep, max_rows: int) -> None:
        layers, capacity = len(step.layers), step.max_length
        heads, width, size, inner = step.heads, step.width, step.size, step.layers[0].up.rows
        inside = inner + max(inner, 2 * step.groups * size) + 2 * step.lanes
        sizes = (width, width, heads * size, heads * size, inside)
        self.max_rows = max_rows
        self.buffers = [torch.zeros(max_rows, count, dtype=torch.float32) for count in sizes]
        self.scores = torch.zeros(
            torch.get_num_threads() + step.spare_cores,
            step.queries * (capacity + step.lanes),
            dtype=torch.float32,
        )
        self.step_sizes = torch.zeros(max_rows, dtype=torch.float32)
        widest = max(width, heads * size, inner)
        self.rounded = torch.zeros(max_rows, widest + widest % 2, dtype=torch.int16)
        self.all_logits = torch.empty(max_rows, step.head.rows, dtype=torch.float32)
        self.all_places = torch.zeros(max_rows, 4, dtype=torch.int64)
        self.described = StepModel(
            *(layers, max_rows, width, heads, step.groups, size, inner, capacity, len(self.scores)),
            *(max_rows, self.all_places.data_ptr(), (Layer * layers)(*step.layers)),
            *(step.last, step.head, *map(Tensor.data_ptr, (*self.buffers, self.scores))),
            *(self.step_sizes.data_ptr(), self.rounded.data_ptr()),
        )
        self.use(max_rows)

    def use(self, rows: int) -> None:
        """Prepare a step over `rows` rows, each of a text without padding."""
        # `y` is left with what the head was applied to.
        self.x, self.y, self.logits, self.places = (
            *(buffer[:rows] for buffer in self.buffers[:2]),
            self.all_logits[:rows],
            self.all_places[:rows],
        )
        self.places[:, FIRST] = 0
        self.described.batch = rows
        self.shape: tuple[int, int] | None = None  # texts and steps of `lay_out`

    def place(self, texts: Int[Tensor, " R"], padding: Int[Tensor, " B"], max_length: int) -> None:
        """Say which text each row is of; all texts have room for `max_length` tokens."""
        self.places[:, START], self.places[:, ROOM] = texts * max_length, max_length
        self.places[:, FIRST] = padding[texts]

    def lay_out(self, steps: int, padding: Int[Tensor, " B"], max_length: int) -> None:
        """Lay the rows out as `steps` tokens in turn of each text, behind its padding."""
        self.place(torch.arange(len(padding)).repeat_interleave(steps), padding, max_length)
        self.steps, self.shape = torch.arange(steps).repeat(len(padding)), (len(padding), steps)


def make_native_step(model: CausalModel, weights: torch.dtype | None = None) -> NativeStep | None:
    """Make the step in C for a model, with weights of this type; None where there can be none."""
    if model.device.type != "cpu" or not is_supported(model):
        return None
    library = _compile()
    stored = model.dtype if model.dtype in TYPE_CODES else torch.float32
    if library is None:
        return None
    step = NativeStep(model, library, weights or stored)
    return step if step.fits() else None


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(STEP_SOURCE)
    if library:
        library.step.argtypes = [c_void_p, c_void_p, c_void_p]
        library.step.restype = None
        for constant in (library.lanes, library.panel, library.queries):
            constant.argtypes, constant.restype = [], c_int64
    return library
