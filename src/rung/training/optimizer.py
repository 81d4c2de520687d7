"""Muon for the matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024) steps a weight matrix along the nearest semi-orthogonal matrix to its
momentum. It learns in far fewer steps than AdamW, and short runs are short of steps.
`torch.optim.Muon` takes the matrices one by one; here equal shapes go through one batched product,
which small models on a CPU need.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw
from transformers import TrainingArguments

from rung.training.sharding import shard_like, to_full, to_local

# The coefficients of x, x³ and x⁵ of each iteration. Together they bring what is between 0.01 and 1
# as near to 1 as three can: each is the best polynomial for the interval that the one before leaves
# (Amsel et al. 2025, arXiv 2505.16932), widened by 2% for rounding. At equal steps they learn as
# five iterations with the coefficients of Jordan et al. do.
POLYNOMIALS = (
    (7.9347, -22.2581, 15.8015),
    (3.5779, -2.5779, 0.4886),
    (2.6988, -2.0186, 0.4618),
)
# Products of one iteration, each as many multiplications as its matrix has weights, times its rows.
PRODUCTS = 3
# Wide matrices are cut into blocks where their products would take more than this share of what the
# model computes in a step, but never into blocks of fewer rows than so many.
PRODUCTS_SHARE, LEAST_ROWS = 0.5, 128
# Matrices so many times as long as wide are orthogonalized by products of their Gram matrices,
# which are three quarters of the multiplications at 2.7 times, the shape of a Llama's MLP.
LONG = 2
# An orthogonal step scaled so has the root mean square of AdamW's: one learning rate serves both
# (Liu et al. 2025, section 2.2).
RMS_OF_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `muon: True`, which hold matrices, and AdamW for the others.

    One learning rate serves both; AdamW's groups may take a multiple of it, `lr_scale`. A matrix
    that is several in one, such as GPT-2's query-key-value or the gates of an LSTM, is stepped as
    several, and so is one with more than `most_rows` rows or columns. Matrices are orthogonalized
    in `dtype`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        dtype: torch.dtype,
        most_rows: int | None = None,
    ) -> None:
        self.dtype, self.most_rows = dtype, most_rows
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)
            else:
                self._step_others(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        momentum = group["betas"][1]
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            gradient, buffer = to_local(parameter.grad), to_local(state["momentum_buffer"])
            buffer.lerp_(gradient, 1 - momentum)
            update = gradient.lerp(buffer, momentum)  # Nesterov
            # A process has room for one full matrix at a time.
            if isinstance(parameter, DTensor):
                self._step_sharded(parameter, update, group)
                continue
            for weight, direction in zip(self._split(parameter), self._split(update), strict=True):
                alike[weight.shape].append((weight, direction))
        for shape, pairs in alike.items():
            steps = orthogonalize(torch.stack([direction for _, direction in pairs]).to(self.dtype))
            size = group["lr"] * RMS_OF_ADAMW * math.sqrt(max(shape))
            torch._foreach_mul_([w for w, _ in pairs], 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(
                [w for w, _ in pairs], list(steps.to(pairs[0][0].dtype)), alpha=-size
            )

    def _step_sharded(self, parameter: DTensor, update: Tensor, group: dict[str, Any]) -> None:
        """Step a matrix that FSDP2 has sharded.

        Every process gathers the full update, and steps the shard that it holds.
        """
        sharded = DTensor.from_local(
            update.to(self.dtype),
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        full = to_full(sharded)
        parts = self._split(full)
        for part in parts:
            part.copy_(orthogonalize(part[None])[0])
        weight, size = to_local(parameter), RMS_OF_ADAMW * math.sqrt(max(parts[0].shape))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(
            to_local(shard_like(full, parameter)).to(weight.dtype), alpha=-group["lr"] * size
        )

    def _split(self, matrix: Tensor) -> list[Tensor]:
        return [
            block for part in split_matrix(matrix) for block in cut_matrix(part, self.most_rows)
        ]

    def _step_others(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        if parameters:
            adamw(
                [to_local(p) for p in parameters],
                [to_local(cast(Tensor, p.grad)) for p in parameters],
                [to_local(s["exp_avg"]) for s in states],
                [to_local(s["exp_avg_sq"]) for s in states],
                [],
                [s["step"] for s in states],
                foreach=False,
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                # Checkpoints of older versions have no scale.
                lr=group["lr"] * group.get("lr_scale", 1.0),
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


def orthogonalize(matrices: Float[Tensor, "N rows columns"]) -> Float[Tensor, "N rows columns"]:
    """Approximate the nearest semi-orthogonal matrix to each, by Newton-Schulz iterations.

    Singular values down to a hundredth of the largest come out between about 0.7 and 1.3.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    # The root of the Gram matrix's norm bounds the singular values several times more tightly than
    # the norm of a wide matrix, which saves an iteration.
    bound = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x, gram = x * bound.rsqrt(), gram / bound
    if x.dtype == torch.float32 and x.shape[-1] >= LONG * x.shape[-2]:
        x = _multiply_polynomials(gram) @ x
    else:
        for iteration, (a, b, c) in enumerate(POLYNOMIALS):
            gram = x @ x.mT if iteration else gram
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _multiply_polynomials(gram: Float[Tensor, "N rows rows"]) -> Float[Tensor, "N rows rows"]:
    """Return the square matrix that makes all iterations at once, from x xᵀ.

    An iteration multiplies x by p, a polynomial of its Gram matrix, and that by p on both sides.
    Rounding errors in the smallest singular values grow in float32 to 1e-4, and in bfloat16 to
    more than the matrix.
    """
    product = None
    for a, b, c in POLYNOMIALS:
        gram = gram if product is None else p @ gram @ p
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        product = p if product is None else p @ product
    assert product is not None
    return product


def split_matrix(matrix: Tensor) -> list[Tensor]:
    """Split a fused matrix into square ones: (D, 3D) into three, the gates (4D, D) into four."""
    rows, columns = matrix.shape
    if rows > columns and rows % columns == 0:
        return list(matrix.split(columns, dim=0))
    if columns > rows and columns % rows == 0:
        return list(matrix.split(rows, dim=1))
    return [matrix]


def cut_matrix(matrix: Tensor, most_rows: int | None) -> list[Tensor]:
    """Cut a matrix along its shorter side into blocks of at most so many rows, or columns."""
    axis = int(matrix.shape[0] > matrix.shape[1])
    rows = matrix.shape[axis]
    if most_rows is None or rows <= most_rows:
        return [matrix]
    return list(matrix.split(math.ceil(rows / math.ceil(rows / most_rows)), dim=axis))


def choose_most_rows(model: Any, tokens: int) -> int | None:
    """Choose the rows of the blocks that Muon cuts matrices into, for steps of so many tokens.

    The products of one weight grow with the rows of its matrix, and the model's with the tokens.
    The rows are halved until the products take `PRODUCTS_SHARE` of what the model computes. Shapes
    alone decide, so a run can be repeated on any machine. None leaves matrices whole.
    """
    matrices = group_parameters(model, weight_decay=0.0)[0]["params"]
    # Each part's weights and rows, without its numbers, which FSDP2 may have sharded.
    parts = [
        (part.numel(), min(part.shape))
        for matrix in matrices
        for part in split_matrix(torch.empty(matrix.shape, device="meta"))
    ]
    # A forward pass multiplies each weight once for each token, a backward pass twice.
    most = PRODUCTS_SHARE * 3 * tokens * count_multiplied(model)
    rows = widest = max((rows for _, rows in parts), default=0)
    iterations = PRODUCTS * len(POLYNOMIALS)
    while rows >= 2 * LEAST_ROWS and iterations * sum(n * min(rows, r) for n, r in parts) > most:
        rows = math.ceil(rows / 2)
    return rows if rows < widest else None


def count_multiplied(model: Any) -> int:
    """Count the weights that a token is multiplied by: all but the tables that are looked up."""
    head = model.get_output_embeddings()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables -= {id(head.weight)} if head is not None else set()
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def read_muon_options(options: str | None) -> float:
    """Read `optim_args` of Muon: the `lr_scale` of embeddings and head, in "embedding_lr_scale=4".

    Raises `ValueError` for anything else.
    """
    if options is None:
        return 1.0
    key, _, value = str(options).replace(" ", "").partition("=")
    scale = float(value)
    if key != "embedding_lr_scale" or not 0 < scale < math.inf:
        raise ValueError(f"{options} is no embedding_lr_scale=NUMBER above 0")
    return scale


def make_muon(model: Any, arguments: TrainingArguments, tokens: int) -> Muon:
    """Make Muon for a model that is trained with these arguments, in steps of so many tokens."""
    return Muon(
        group_parameters(
            model,
            weight_decay=arguments.weight_decay,
            embedding_lr_scale=read_muon_options(cast(str | None, arguments.optim_args)),
        ),
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        dtype=torch.bfloat16 if arguments.bf16 else torch.float32,
        most_rows=choose_most_rows(model, tokens),
    )


def group_parameters(
    model: Any, *, weight_decay: float, embedding_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Make `Muon`'s parameter groups: hidden matrices, embeddings and head, and vectors.

    Vectors never decay. Embeddings and head may learn at a multiple of the learning rate.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    tables |= {id(head.weight)} if head is not None else set()
    matrices: list[Tensor] = []
    wide: list[Tensor] = []
    vectors: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_table = id(parameter) in tables
            (vectors if parameter.ndim < 2 else wide if is_table else matrices).append(parameter)
    return [
        {"params": matrices, "weight_decay": weight_decay, "muon": True},
        {
            "params": wide,
            "weight_decay": weight_decay,
            "muon": False,
            "lr_scale": embedding_lr_scale,
        },
        {"params": vectors, "weight_decay": 0.0, "muon": False},
    ]
