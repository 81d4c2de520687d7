"""Attention in blocks, SwiGLU and rotation in C, against torch's own, forward and back."""

import pytest
import torch
from torch.nn import functional as F

from rung.models import fused
from rung.models.fused_attention import attend_in_blocks
from rung.models.fused_layers import multiply_silu, rotate

pytestmark = pytest.mark.conditions


@pytest.fixture(autouse=True)
def _need_a_compiler():
    if fused._compile() is None:
        pytest.skip("there is no C compiler here")


def assert_same(ours, theirs, inputs, scale=1.0):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6 * scale)
    up = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.autograd.grad(side, inputs, up) for side in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "shape", [(2, 2, 1, 130, 8), (3, 4, 2, 64, 6), (1, 3, 3, 65, 16), (2, 6, 2, 200, 4)]
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_attention_in_blocks_is_torchs(shape, scale):
    """Groups of queries, blocks that end early, and scores far apart."""
    batch, heads, groups, steps, size = shape
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, steps, n, size).transpose(1, 2) for n in (heads, groups, groups))
    q, k, v = (t.requires_grad_() for t in (scale * q, k, v))
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)
    assert_same(attend_in_blocks(q, k, v), theirs, (q, k, v), scale)


def assert_near(ours, theirs, inputs, wide):
    """Whether both are near in bfloat16, and the gradients of `inputs` near those of `wide`."""
    assert ours.dtype == torch.bfloat16
    up = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = [ours, *torch.autograd.grad(ours, inputs, up)]
    expected = [theirs, *torch.autograd.grad(theirs, wide, up.float())]
    for mine, other in zip(found, expected, strict=True):
        assert (mine.float() - other).norm() < 0.005 * other.norm()


def in_bfloat16(*tensors):
    """Leaves rounded to bfloat16, and the same numbers as leaves of float32."""
    rounded = [tensor.bfloat16().requires_grad_() for tensor in tensors]
    return rounded, [tensor.detach().float().requires_grad_() for tensor in rounded]


@pytest.mark.parametrize(
    "shape", [(2, 2, 1, 130, 8), (3, 4, 2, 64, 6), (1, 3, 3, 65, 16), (2, 3, 1, 67, 64)]
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_attention_in_blocks_is_torchs_in_bfloat16(shape, scale):
    """Also where a block has an odd number of queries, of which the last one has no pair."""
    if not fused._compile().has_pairs():
        pytest.skip("this processor does not multiply bfloat16")
    batch, heads, groups, steps, size = shape
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, steps, n, size).transpose(1, 2) for n in (heads, groups, groups))
    inputs, wide = in_bfloat16(scale * q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        ours = attend_in_blocks(*inputs)
    theirs = F.scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=heads != groups)
    assert_near(ours, theirs, inputs, wide)


def test_attention_in_blocks_does_not_look_ahead():
    """What comes later leaves no trace, be it no number."""
    dtypes = [torch.float32] + [torch.bfloat16] * bool(fused._compile().has_pairs())
    for dtype in dtypes:
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 2, 70, 8).to(dtype).requires_grad_() for _ in "qkv")
        later = k.detach().clone()
        later[:, :, 41:] = float("nan")
        before, after = (attend_in_blocks(q, keys, v)[:, :, :41] for keys in (k, later))
        assert torch.equal(before, after)
        slopes = torch.autograd.grad(before.float().square().sum(), (k, v))
        assert not any(slope[:, :, 41:].any() for slope in slopes)


def test_attention_in_blocks_serves_training_alone(monkeypatch):
    q = torch.randn(1, 2, 64, 8, requires_grad=True)
    k = torch.randn(1, 2, 64, 8)
    assert attend_in_blocks(q, k, k) is not None
    assert attend_in_blocks(q[:, :, :63], k[:, :, :63], k[:, :, :63]) is None
    assert attend_in_blocks(q.detach(), k, k) is None
    assert attend_in_blocks(q.double(), k.double(), k.double()) is None
    with torch.no_grad():
        assert attend_in_blocks(q, k, k) is None
    with torch.autocast("cpu", torch.float16):
        assert attend_in_blocks(q, k, k) is None
    has_pairs = bool(fused._compile().has_pairs())
    tiles = {"amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: tiles)
    with torch.autocast("cpu", torch.bfloat16):
        assert (attend_in_blocks(q, k, k) is not None) == has_pairs
        tiles["amx_bf16"] = True
        assert attend_in_blocks(q, k, k) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert attend_in_blocks(q, k, k) is None


@pytest.mark.parametrize("width", [1, 37, 9000])
def test_silu_times_is_torchs(width):
    torch.manual_seed(0)
    gate = (20 * torch.randn(5, width)).requires_grad_()
    up = torch.randn(width, 5).T.requires_grad_()
    assert_same(multiply_silu(gate, up), F.silu(gate) * up, (gate, up))


@pytest.mark.parametrize("width", [1, 37, 9000])
def test_silu_times_is_torchs_in_bfloat16(width):
    torch.manual_seed(0)
    inputs, wide = in_bfloat16(20 * torch.randn(5, width), torch.randn(width, 5).T)
    assert_near(multiply_silu(*inputs), F.silu(wide[0]) * wide[1], inputs, wide)
    with torch.autocast("cpu", torch.bfloat16):
        assert multiply_silu(*inputs) is not None
        assert multiply_silu(*wide) is None


def test_silu_times_holds_at_both_ends_of_the_range():
    gate = torch.tensor([-1e30, -100.0, -0.0, 100.0, 1e30, float("nan")], requires_grad=True)
    up = torch.ones(6)
    ours, theirs = multiply_silu(gate, up), F.silu(gate)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=1e-30)
    slopes = torch.autograd.grad(ours.sum(), gate)[0][:5]
    torch.testing.assert_close(slopes, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


@pytest.mark.parametrize("shape", [(3, 2, 50, 8), (1, 1, 1, 2), (2, 4, 300, 32)])
@pytest.mark.parametrize("shared", [True, False])
def test_rotation_is_torchs(shape, shared):
    """Positions that the rows share, and a row's own."""
    batch, heads, steps, size = shape
    torch.manual_seed(0)
    x = torch.randn(batch, steps, heads, size).transpose(1, 2).requires_grad_()
    angles = torch.randn(1 if shared else batch, 1, steps, size // 2)
    cos = torch.cat([angles.cos()] * 2, dim=-1)
    sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
    theirs = torch.addcmul(x * cos, x.roll(size // 2, dims=-1), sin)
    assert_same(rotate(x, cos, sin), theirs, (x,))
    assert rotate(x.detach(), cos, sin) is None
    (rounded,), (wide,) = in_bfloat16(x.detach())
    theirs = torch.addcmul(wide * cos, wide.roll(size // 2, dims=-1), sin)
    assert_near(rotate(rounded, cos, sin), theirs, (rounded,), (wide,))
    assert rotate(rounded, cos.bfloat16(), sin.bfloat16()) is None
