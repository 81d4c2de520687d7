"""Tokens at the speed that the weights are read: `step.c`, compiled once, over a transformer's own
weights.

Where there is no C compiler, or a model has parts that `step.c` does not know, the model's own
forward pass takes its place; a test holds the two together.
"""

import copy
import ctypes
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from rung.compiler import Address, compile_source
from rung.generation.quantize import quantize_int8
from rung.models.base import CausalModel
from rung.models.config_checks import PROBABILITY_FIELDS
from rung.models.fused import is_unmodified
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.kv_cache import KVCache
from rung.models.llama3 import LlamaForCausalLM, rotary_cos_sin

SOURCE = Path(__file__).with_name("step.c")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
START, ROOM, FIRST, AT = range(4)  # columns of a place, in step.c
LANES = 16  # of step.c: rows of a matrix that stand side by side
MANY = 8  # rows, that are worth a core which others could use
GELUS = ("gelu_new", "gelu_pytorch_tanh")


class _Product(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("weight", "scale", "bias")),
        *((name, c_int64) for name in ("rows", "columns", "type")),
    ]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Norm) for name in ("before_attention", "before_mlp")),
        *((name, _Product) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *(("keys", c_void_p), ("values", c_void_p), ("scale", c_float)),
    ]


class _Model(Structure):
    _fields_ = [
        *(
            (name, c_int64)
            for name in ("layers", "batch", "width", "heads", "groups", "size", "inner", "capacity")
        ),
        ("threads", c_int64),
        *(("places", c_void_p), ("layer", POINTER(_Layer)), ("last", _Norm), ("head", _Product)),
        *((name, c_void_p) for name in ("x", "y", "q", "attended", "inside", "scores")),
    ]


class NativeStep:
    """Appends tokens to each text of a batch, for one model."""

    def __init__(self, model: CausalModel, compiled: ctypes.CDLL, weights: torch.dtype) -> None:
        self.model = model
        self.compiled = compiled
        self.weights = weights
        self.spare = 0  # cores beside torch's threads, that many rows may have too
        self.kept: list[Tensor] = []  # what the structures point to
        self.longest = 0  # tokens of a text for which there is memory
        config = model.config
        self.heads, self.width = config.num_attention_heads, config.hidden_size
        self.groups = getattr(config, "num_key_value_heads", self.heads)
        self.size = getattr(config, "head_dim", self.width // self.heads)
        self.layers = list(self._gpt2() if isinstance(model, GPT2LMHeadModel) else self._llama())
        self.last = self._norm(
            model.transformer.ln_f if isinstance(model, GPT2LMHeadModel) else model.model.norm
        )
        self.head = self._product(model.lm_head.weight)

    def fits(self) -> bool:
        """Whether each product is of the size that `step.c` takes it for: the same in all
        layers.
        """
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

    def begin(self, state: KVCache, ahead: Int[Tensor, " B"]) -> None:
        """Go on after what `state` holds; the first `ahead` columns of each row are padding."""
        if bool(((ahead < 0) | (ahead > state.get_seq_length())).any()):
            raise ValueError(
                f"{ahead.tolist()} columns of padding, but {state.get_seq_length()} tokens are "
                f"there"
            )
        rows = [(keys.float(), values.float()) for keys, values in state.keys_values]
        self.hold(rows, state.capacity)
        if self.tokens != len(ahead) * state.capacity:
            raise ValueError(
                f"padding of {len(ahead)} texts, but memory for {self.tokens} tokens of "
                f"{state.capacity} each"
            )
        self.state, self.ahead, state.keys_values = state, ahead, rows

    def hold(self, rows: list[tuple[Tensor, Tensor]], longest: int) -> None:
        """Read and write keys and values there from now on, in float32; `longest`: tokens of a text
        at most.
        """
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
            rotation = rotary_cos_sin(torch.arange(longest)[None], self.model.config, torch.float32)
            turns = torch.stack([part[0, 0] for part in rotation], dim=1)  # S 2 K
        self.turns, self.longest, self.tokens, self.held = turns, longest, tokens, rows
        self.room: _Room | None = None
        for layer, (keys, values) in zip(self.layers, places, strict=True):
            layer.keys, layer.values = keys, values

    def decode(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the token after each of `tokens`; the next call writes over them."""
        texts, steps = tokens.shape
        at = self.state.get_seq_length()
        if texts != len(self.ahead) or at + steps > self.longest:
            most = f"{len(self.ahead)} texts of {self.longest}"
            raise ValueError(f"{texts} texts of {at + steps} tokens, but there is room for {most}")
        room = self._make_room(texts * steps)
        if room.shape != (texts, steps):
            room.lay_out(steps, self.ahead, self.longest)
        torch.add(room.steps, at, out=room.places[:, AT])
        logits = self._run(room, tokens.flatten(), room.places[:, AT] - room.places[:, FIRST])
        self.state.length, self.state.written = at, steps
        return logits.view(texts, steps, -1)

    def step(
        self, tokens: Int[Tensor, " R"], spans: Int[Tensor, "R 2"], at: Int[Tensor, " R"]
    ) -> Float[Tensor, "R V"]:
        """Logits of the token after each of `tokens`, which is the next of a text and stands `at`
        its own place there; the next call writes over them.

        Of each text, `spans` says how many tokens others have room for before it, and how many it
        has.
        """
        for (start, its_room), place in zip(spans.tolist(), at.tolist(), strict=True):
            if not (
                0 <= place < min(its_room, self.longest) and 0 <= start <= self.tokens - its_room
            ):
                most = f"{its_room} from {start} on, of {self.tokens}"
                raise ValueError(f"a token stands at {place}, but there is room for {most}")
        room = self._make_room(len(tokens))
        if room.shape is not None:
            room.use(len(tokens))
        room.places[:, START : ROOM + 1], room.places[:, AT] = spans, at
        return self._run(room, tokens, at)

    def _make_room(self, rows: int) -> "_Room":
        """The one set of buffers, made anew where it is too small: of all steps the largest alone
        is paid for.
        """
        if self.room is None or self.room.most < rows:
            self.room = None  # so that the old one is gone before
            self.room = _Room(self, rows)
        if len(self.room.places) != rows:
            self.room.use(rows)
        return self.room

    def _run(
        self, room: "_Room", tokens: Int[Tensor, " R"], positions: Int[Tensor, " R"]
    ) -> Float[Tensor, "R V"]:
        if isinstance(self.model, GPT2LMHeadModel):
            parts = self.model.transformer
            room.x.copy_(
                torch.embedding(parts.wte.weight, tokens)
                + torch.embedding(parts.wpe.weight, positions)
            )
        else:
            room.x.copy_(torch.embedding(self.model.model.embed_tokens.weight, tokens))
        turns = self.turns[positions] if self.turns is not None else None
        pointer = (
            Address(turns, (len(tokens), 2, self.size), torch.float32)
            if turns is not None
            else None
        )
        threads = torch.get_num_threads() + (self.spare if len(tokens) >= MANY else 0)
        room.described.threads = min(threads, len(room.scores))
        self.compiled.step(
            byref(room.described), pointer, Address(room.logits, room.logits.shape, torch.float32)
        )
        return room.logits

    def _llama(self) -> Iterator[_Layer]:
        for block in self.model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            names = {
                "q": attention.q_proj,
                "k": attention.k_proj,
                "v": attention.v_proj,
                "o": attention.o_proj,
            }
            names |= {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
            yield _Layer(
                before_attention=self._norm(block.input_layernorm),
                before_mlp=self._norm(block.post_attention_layernorm),
                scale=self.model.config.head_dim**-0.5,
                **{
                    name: self._product(linear.weight, linear.bias)
                    for name, linear in names.items()
                },
            )

    def _gpt2(self) -> Iterator[_Layer]:
        """Its projections are stored (in, out), and those of q, k and v side by side."""
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
            yield _Layer(
                before_attention=self._norm(block.ln_1),
                before_mlp=self._norm(block.ln_2),
                scale=attention.scale * size**-0.5,
                **products,
            )

    def _product(self, weight: Float[Tensor, "N D"], bias: Tensor | None = None) -> _Product:
        scale, rows = None, weight.shape[0]
        if self.weights == torch.int8:
            weight, scale = quantize_int8(weight)
        blocks = self._fill(weight).unflatten(0, (-1, LANES)).mT  # N/LANES D LANES
        filled = len(blocks) * LANES
        each = [
            None if t is None else self._keep(self._fill(t), (filled,), torch.float32)
            for t in (scale, bias)
        ]
        return _Product(
            *(self._keep(blocks, blocks.shape, self.weights), *each),
            *(rows, weight.shape[1], KINDS[self.weights]),
        )

    def _fill(self, rows: Tensor) -> Tensor:
        """With zeros, to a multiple of `LANES` rows."""
        missing = -len(rows) % LANES
        return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows

    def _norm(self, module: nn.Module) -> _Norm:
        parameters = dict(module.named_parameters())
        each = (parameters.get(name) for name in ("weight", "bias"))
        weight, bias = (
            None if t is None else self._keep(t, (self.width,), torch.float32) for t in each
        )
        return _Norm(weight, bias, module.eps)

    def _keep(self, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Where the values are as `dtype`, in one piece; a copy only where they are not."""
        self.kept.append(tensor.detach().to(dtype).contiguous())
        return Address(self.kept[-1], shape, dtype).value


class _Room:
    """What a step over `most` rows or less writes to; `places` says whose they are."""

    def __init__(self, step: NativeStep, most: int) -> None:
        layers, capacity = len(step.layers), step.longest
        heads, width, size, inner = step.heads, step.width, step.size, step.layers[0].up.rows
        inside = inner + max(inner, 2 * step.groups * size) + 2 * LANES
        sizes = (width, width, heads * size, heads * size, inside)
        self.most = most
        self.buffers = [torch.zeros(most, count, dtype=torch.float32) for count in sizes]
        self.scores = torch.zeros(
            torch.get_num_threads() + step.spare, capacity + LANES, dtype=torch.float32
        )
        self.all_logits = torch.empty(most, step.head.rows, dtype=torch.float32)
        self.all_places = torch.zeros(most, 4, dtype=torch.int64)
        self.described = _Model(
            *(layers, most, width, heads, step.groups, size, inner, capacity, len(self.scores)),
            *(self.all_places.data_ptr(), (_Layer * layers)(*step.layers), step.last, step.head),
            *(buffer.data_ptr() for buffer in (*self.buffers, self.scores)),
        )
        self.use(most)

    def use(self, rows: int) -> None:
        """Let the next step be one of so many rows, each of a text without padding."""
        self.x, self.logits, self.places = (
            self.buffers[0][:rows],
            self.all_logits[:rows],
            self.all_places[:rows],
        )
        self.places[:, FIRST] = 0
        self.described.batch = rows
        self.shape: tuple[int, int] | None = (
            None  # texts and steps that the places are laid out for
        )

    def lay_out(self, steps: int, ahead: Int[Tensor, " B"], longest: int) -> None:
        """Let the rows be so many steps of each text, which has room for `longest` tokens, after
        its padding.
        """
        texts = torch.arange(len(ahead)).repeat_interleave(steps)
        self.places[:, START], self.places[:, ROOM], self.places[:, FIRST] = (
            texts * longest,
            longest,
            ahead[texts],
        )
        self.steps, self.shape = torch.arange(steps).repeat(len(ahead)), (len(ahead), steps)


def is_supported(model: CausalModel) -> bool:
    """Whether `step.c` computes what `model` does: it has exactly the modules and shapes that its
    configuration makes.

    No adapter, parametrization or quantised layer is among them, none is hooked, and none drops
    channels now.
    """
    config = copy.deepcopy(model.config)
    if type(model) is GPT2LMHeadModel:
        knows_activation = config.activation_function in GELUS
    elif type(model) is LlamaForCausalLM:
        knows_activation = config.hidden_act == "silu"
    else:
        return False
    drops = model.training and any(getattr(config, key, None) for key in PROBABILITY_FIELDS)
    with torch.device("meta"), no_init_weights():
        wanted = type(model)(config)
    parts, kinds = (
        dict(model.named_modules()),
        {name: type(part) for name, part in wanted.named_modules()},
    )
    is_whole = parts.keys() == kinds.keys() and all(
        is_unmodified(parts[name], kind) for name, kind in kinds.items()
    )
    return knows_activation and not drops and is_whole and _shapes(model) == _shapes(wanted)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {
        name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def make_native_step(model: CausalModel, weights: torch.dtype | None = None) -> NativeStep | None:
    """The step in C for this model, with its weights as `weights`; None where there can be none."""
    if model.device.type != "cpu" or not is_supported(model):
        return None
    library = _compile()
    stored = model.dtype if model.dtype in KINDS else torch.float32
    if library is None:
        return None
    step = NativeStep(model, library, weights or stored)
    return step if step.fits() else None


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(SOURCE)
    if library:
        library.step.argtypes = [c_void_p, c_void_p, c_void_p]
        library.step.restype = None
    return library
