"""The fused operations against torch's own, forward and back, in C and without it."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rung.models import fused
from rung.models.llama3 import LlamaRMSNorm
from tests.conftest import NEURAL, examples

pytestmark = pytest.mark.conditions


@pytest.fixture(params=["C", "torch"])
def side(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(fused, "_compile", lambda: None)
    elif fused._compile() is None:
        pytest.skip("there is no C compiler here")
    return request.param


def gradients(value, *leaves):
    return torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("shape", [(3, 5, 16), (1, 1, 3), (40, 70, 24)])
def test_rms_norm_is_torchs(shape, side):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.rand(shape[-1], requires_grad=True)
    ours, theirs = fused.rms_norm(x, weight, 1e-5), F.rms_norm(x, shape[-1:], weight, 1e-5)
    up = torch.randn(shape)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        gradients((ours * up).sum(), x, weight),
        gradients((theirs * up).sum(), x, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_rms_norm_under_autocast_reads_as_the_products_do(side):
    torch.manual_seed(0)
    norm, linear, x = (
        LlamaRMSNorm(64, 1e-5),
        torch.nn.Linear(64, 8),
        torch.randn(4, 9, 64, requires_grad=True),
    )
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = linear(norm(x)), linear(F.rms_norm(x, (64,), norm.weight, 1e-5))
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(
        *(gradients(y.float().square().sum(), x)[0] for y in (ours, theirs)), rtol=5e-2, atol=5e-2
    )


@pytest.mark.parametrize("at_once", [2**26, 100])
@pytest.mark.parametrize("items", [None, 7, torch.tensor(7.0)])
def test_linear_cross_entropy_is_torchs(at_once, items, side, monkeypatch):
    """Whole and some rows at a time, targets that are not counted among them."""
    monkeypatch.setattr(fused, "MAX_LOGITS", at_once)
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 6, requires_grad=True), torch.randn(31, 6, requires_grad=True)
    targets = torch.randint(31, (11,))
    targets[[2, 10]] = -100
    ours = fused.linear_cross_entropy(hidden, weight, targets, items)
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / (
        9 if items is None else items
    )
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        gradients(3 * ours, hidden, weight), gradients(3 * theirs, hidden, weight), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_costs_hold_at_both_ends_of_the_range(dtype, scale):
    logits = (scale * torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))).to(dtype)
    targets = torch.tensor([0, 999, 5, -100, 7, 8])
    wide = logits.float().requires_grad_()
    expected = F.cross_entropy(wide, targets, reduction="none")
    nats = torch.empty(6)
    grad = fused._costs(logits, targets, nats)
    torch.testing.assert_close(nats, expected.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        grad.float(), gradients(expected.sum(), wide)[0], rtol=1e-2, atol=1e-6
    )


def test_a_logit_that_is_no_number_makes_a_loss_that_is_none(side):
    logits = torch.randn(2, 40)
    logits[0, 30] = float("nan")
    nats = torch.empty(2)
    fused._costs(logits, torch.tensor([1, 2]), nats)
    assert nats.isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", NEURAL)
@pytest.mark.parametrize("items", [None, 50])
def test_without_logits_the_loss_and_the_gradients_are_the_same(name, items, make_tiny):
    model = make_tiny(name).train()
    ids = torch.randint(4, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(ids % 5 == 0, -100)
    options = {} if items is None else {"num_items_in_batch": items}
    plain = model(input_ids=ids, labels=labels, **options)
    expected = gradients(plain.loss, *model.parameters())
    alone = model(input_ids=ids, labels=labels, skip_logits=True, **options)
    assert alone.logits is None
    torch.testing.assert_close(alone.loss, plain.loss)
    for mine, other in zip(gradients(alone.loss, *model.parameters()), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_one_number_for_all_is_read_as_such(side):
    """What `sum` hands back has stride 0, so C reads a copy; made for the call alone, it was gone
    before C read it.
    """
    weight = torch.rand(24, requires_grad=True)
    for seed in range(20):
        x = torch.randn(
            40, 70, 24, generator=torch.Generator().manual_seed(seed), requires_grad=True
        )
        ours, theirs = (
            norm(x) for norm in (partial(fused.rms_norm, weight=weight, eps=1e-5), torchs(weight))
        )
        for mine, other in zip(
            gradients(ours.sum(), x, weight), gradients(theirs.sum(), x, weight), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def torchs(weight):
    return lambda x: F.rms_norm(x, weight.shape, weight, 1e-5)


def test_labels_with_gaps_between_them_are_read_as_they_are(side):
    hidden, weight = torch.randn(4000, 6, requires_grad=True), torch.randn(31, 6)
    targets = torch.randint(31, (4000, 3))[:, 1]
    assert not targets.is_contiguous()
    ours = fused.linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(ours, F.cross_entropy(hidden @ weight.T, targets))


@pytest.mark.parametrize("label", [31, -1, -101, 2**40])
def test_a_label_that_is_no_token_is_refused_as_in_torch(label, side):
    hidden, weight, targets = (
        torch.randn(5, 6),
        torch.randn(31, 6),
        torch.tensor([1, 2, label, -100, 3]),
    )
    with pytest.raises(
        IndexError, match=f"label {label} is no token: labels are below 31, or -100"
    ):
        fused.linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(IndexError):
        F.cross_entropy(hidden @ weight.T, targets)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_nothing_is_normalised_to_nothing(shape, side):
    assert fused.rms_norm(torch.randn(shape), torch.ones(4), 1e-5).shape == shape


@st.composite
def laid_out(draw, *shape):
    """Numbers of a shape, in memory of any strides: turned, with gaps, each several times, or of
    one number.
    """
    tensor = torch.randn(
        [2 * size for size in shape],
        generator=torch.Generator().manual_seed(draw(st.integers(0, 9))),
    )
    order = draw(st.permutations(range(len(shape))))
    tensor = (
        tensor.permute(order)
        .contiguous()
        .permute([order.index(axis) for axis in range(len(shape))])
    )
    for axis, size in enumerate(shape):
        step = draw(st.sampled_from([1, 2]))
        tensor = tensor.narrow(axis, 0, size * step).unfold(axis, 1, step)[..., 0]
    return tensor[..., :1].expand(shape) if draw(st.booleans()) else tensor


@settings(deadline=None, max_examples=examples(25))
@given(
    st.data(),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_rms_norm_is_torchs_whatever_the_strides_and_types(data, rows, width, dtype):
    x, up = (data.draw(laid_out(2, rows, width)).to(dtype) for _ in "xy")
    weight = data.draw(laid_out(width)).to(dtype)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    loose = (
        {"rtol": 5e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-3}
    )
    default = torch.get_default_dtype()
    ours, theirs = fused.rms_norm(x, weight, 1e-2), F.rms_norm(x, (width,), weight, 1e-2)
    torch.testing.assert_close(ours, theirs, **loose)
    try:
        torch.set_default_dtype(
            data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
        )
        mine = torch.autograd.grad(ours, (x, weight), up)
    finally:
        torch.set_default_dtype(default)
    for one, other in zip(mine, torch.autograd.grad(theirs, (x, weight), up), strict=True):
        torch.testing.assert_close(one, other, **loose)


@settings(deadline=None, max_examples=examples(25))
@given(
    st.data(),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 50),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_linear_cross_entropy_is_torchs_whatever_the_strides_and_types(
    data, rows, width, size, dtype
):
    hidden, weight = (
        data.draw(laid_out(count, width)).to(dtype).requires_grad_() for count in (rows, size)
    )
    targets = (data.draw(laid_out(rows)) * 1000).long() % size
    targets = targets.where(torch.rand(rows) > 0.2, -100) if data.draw(st.booleans()) else targets
    ours = fused.linear_cross_entropy(hidden, weight, targets, 7)
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / 7
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, check_dtype=False)
    for one, other in zip(
        gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
