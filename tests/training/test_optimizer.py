"""Muon and the AdamW beside it step as those of torch do."""

import pytest
import torch
from torch import nn

from rung.models import build_model, make_config
from rung.training.optimizer import (
    POLYNOMIALS,
    Muon,
    choose_most_rows,
    cut_matrix,
    group_parameters,
    orthogonalize,
    read_muon_options,
    split_matrix,
)


def orthogonalize_as_torch(matrices):
    """The five iterations of `torch.optim.Muon`, with its coefficients."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, gram, x, beta=3.4445)
    return x.mT if tall else x


@pytest.mark.parametrize("shape", [(16, 16), (24, 20), (20, 24)])
def test_muon_steps_as_torchs_own_but_for_the_iterations(shape, monkeypatch):
    """`torch.optim.Muon`, which orthogonalizes in bfloat16, with the learning rate that matches
    AdamW's.
    """
    monkeypatch.setattr("rung.training.optimizer.orthogonalize", orthogonalize_as_torch)
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(shape, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    group = {"params": [ours], "weight_decay": 0.1, "muon": True}
    one = Muon([group], lr=0.02, betas=(0.9, 0.95), eps=1e-8, dtype=torch.bfloat16)
    other = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(5):
        before = ours.detach().clone()
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
        moved = (ours - before).norm()
        assert (ours - theirs).norm() < 0.03 * moved
        theirs.data.copy_(ours.data)


def test_a_fused_matrix_steps_as_its_parts_would_and_what_has_no_gradient_stays():
    generator = torch.Generator().manual_seed(0)
    draws = {
        0: torch.randn(3, 18, 6, generator=generator),
        1: torch.randn(3, 6, 18, generator=generator),
    }
    fused = [nn.Parameter(draw[0].clone()) for draw in draws.values()]
    parts = [
        [nn.Parameter(part.clone()) for part in draw[0].split(6, dim=axis)]
        for axis, draw in draws.items()
    ]
    still, vector = nn.Parameter(torch.ones(6, 6)), nn.Parameter(torch.ones(6))
    options = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "dtype": torch.float32}
    groups = [
        {"params": [*fused, still], "muon": True},
        {"params": [vector]},
    ]  # nothing decays unless it is asked
    one = Muon(groups, **options)
    other = Muon([{"params": [*parts[0], *parts[1]], "muon": True, "weight_decay": 0.0}], **options)
    for step in (1, 2):
        for axis, draw in draws.items():
            fused[axis].grad = draw[step].clone()
            for part, gradient in zip(parts[axis], draw[step].split(6, dim=axis), strict=True):
                part.grad = gradient.clone()
        one.step()
        other.step()
    for axis in draws:
        torch.testing.assert_close(fused[axis], torch.cat(parts[axis], dim=axis))
    assert (still == 1).all() and (vector == 1).all()


def test_each_matrix_of_a_batch_is_orthogonalized_alone():
    sizes = torch.tensor([1.0, 100.0, 0.01, 0.0])[:, None, None]
    matrices = sizes * torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone)
    assert (alone[3] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24), (1, 200, 200)])
def test_orthogonalize_brings_singular_values_near_one(shape, dtype):
    """Those of a random square matrix reach down to nothing, and few lie there."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    values = torch.linalg.svdvals(orthogonalize(matrices).float()).flatten()
    assert values.quantile(0.03) > 0.4
    assert values.median() > 0.7
    assert values.max() < 1.35


def test_orthogonalize_keeps_the_singular_vectors():
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.double)).Q
        for _ in range(2)
    )
    values = torch.logspace(0, -1.5, 12, dtype=torch.double)
    found = orthogonalize((left * values @ right.mT)[None])[0]
    diagonal = left.mT @ found @ right
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()))
    assert diagonal.diagonal().min() > 0.7 and diagonal.diagonal().max() < 1.3


def test_the_polynomials_bring_their_interval_near_one():
    x = torch.logspace(-2, 0, 10_000, dtype=torch.double)
    for a, b, c in POLYNOMIALS:
        x = a * x + b * x**3 + c * x**5
    assert x.min() > 0.7 and x.max() < 1.3


def test_a_wide_matrix_is_cut_along_its_shorter_side():
    assert [tuple(block.shape) for block in cut_matrix(torch.zeros(9, 20), 4)] == [(3, 20)] * 3
    assert [tuple(block.shape) for block in cut_matrix(torch.zeros(20, 10), 4)] == [
        (20, 4),
        (20, 4),
        (20, 2),
    ]
    matrix = torch.zeros(8, 8)
    assert cut_matrix(matrix, 8) == cut_matrix(matrix, None) == [matrix]


def test_muon_steps_blocks_alone():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 12, 12, generator=generator)
    matrix = nn.Parameter(start.clone())
    matrix.grad = gradient
    options = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "dtype": torch.float32}
    Muon([{"params": [matrix], "muon": True}], **options, most_rows=4).step()
    steps = torch.cat([orthogonalize(part[None])[0] for part in gradient.split(4)])
    torch.testing.assert_close(matrix.detach(), start - 0.02 * 0.2 * 12**0.5 * steps)


@pytest.mark.parametrize(
    ("width", "tokens", "rows"),
    [(128, 256, None), (512, 1024, 128), (512, 2048, 256), (512, 2**20, None)],
)
def test_matrices_are_cut_where_their_products_outweigh_the_models(width, tokens, rows):
    with torch.device("meta"):
        fields = {"hidden_size": width, "num_hidden_layers": 8, "vocab_size": 4096}
        model = build_model("llama3", make_config("llama3", None, fields))
    assert choose_most_rows(model, tokens) == rows


@pytest.mark.parametrize("shape", [(2, 24, 70), (2, 70, 24), (1, 1, 9)])
def test_a_long_matrix_is_orthogonalized_as_by_its_iterations(shape):
    """Singular values over five orders of magnitude; double precision goes the plain way."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrices = matrices * torch.logspace(0, -5, shape[-1])
    expected = orthogonalize(matrices.double()).float()
    torch.testing.assert_close(orthogonalize(matrices), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "parts"), [((8, 8), 1), ((8, 24), 3), ((32, 8), 4), ((8, 20), 1), ((20, 8), 1)]
)
def test_a_fused_matrix_is_stepped_as_its_parts(shape, parts):
    pieces = split_matrix(torch.zeros(shape))
    assert len(pieces) == parts
    assert sum(piece.numel() for piece in pieces) == shape[0] * shape[1]


def test_muon_takes_the_matrices_and_adamw_the_rest(make_tiny):
    model = make_tiny("llama3")
    matrices, tables, vectors = group_parameters(model, weight_decay=0.1)
    assert [p.shape for p in tables["params"]] == [model.lm_head.weight.shape]
    assert all(p.ndim == 2 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
    assert vectors["weight_decay"] == 0
    counted = sum(len(group["params"]) for group in (matrices, tables, vectors))
    assert counted == len(list(model.parameters()))


def test_embeddings_and_head_learn_at_their_own_rate(make_tiny):
    start = make_tiny("llama3").state_dict()
    ends = []
    for options in (None, "embedding_lr_scale=4"):
        model = make_tiny("llama3")
        model.load_state_dict(start)
        scale = read_muon_options(options)
        groups = group_parameters(model, weight_decay=0.0, embedding_lr_scale=scale)
        optimizer = Muon(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, dtype=torch.float32)
        ids = torch.arange(12).view(2, 6)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        ends.append({name: value - start[name] for name, value in model.state_dict().items()})
    plain, scaled = ends
    for name, change in plain.items():
        factor = 4 if name in ("model.embed_tokens.weight", "lm_head.weight") else 1
        torch.testing.assert_close(scaled[name], factor * change, rtol=1e-3, atol=1e-6)


def test_adamw_inside_muon_is_torchs():
    torch.manual_seed(0)
    start = torch.randn(5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    reference = torch.optim.AdamW([theirs], **options)
    group = {"params": [ours], "weight_decay": options.pop("weight_decay")}
    optimizer = Muon([group], **options, dtype=torch.float32)
    for _ in range(5):
        gradient = torch.randn(5)
        for parameter, stepper in ((ours, optimizer), (theirs, reference)):
            parameter.grad = gradient.clone()
            stepper.step()
    torch.testing.assert_close(ours, theirs)
