"""Muon and the AdamW beside it step as those of torch do."""

import pytest
import torch
from torch import nn

from rung.training.optimizer import (
    Muon,
    group_parameters,
    orthogonalize,
    read_muon_options,
    split_matrix,
)


@pytest.mark.parametrize("shape", [(16, 16), (24, 20), (20, 24)])
def test_muon_steps_as_torchs_own(shape):
    """`torch.optim.Muon`, which orthogonalizes in bfloat16, with the learning rate that matches
    AdamW's.
    """
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
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24)])
def test_orthogonalize_brings_singular_values_near_one(shape, dtype):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.min() > 0.4
    assert values.max() < 1.4


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
