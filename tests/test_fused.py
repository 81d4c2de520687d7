"""The fused operations against torch's own, forward and back, in C and without it."""

import pytest
import torch
from conftest import NEURAL
from torch.nn import functional as F

from rung.models import fused
from rung.models.llama3 import LlamaRMSNorm

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
        gradients((ours * up).sum(), x, weight), gradients((theirs * up).sum(), x, weight), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_rms_norm_under_autocast_reads_as_the_products_do(side):
    torch.manual_seed(0)
    norm, linear, x = LlamaRMSNorm(64, 1e-5), torch.nn.Linear(64, 8), torch.randn(4, 9, 64, requires_grad=True)
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
    monkeypatch.setattr(fused, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 6, requires_grad=True), torch.randn(31, 6, requires_grad=True)
    targets = torch.randint(31, (11,))
    targets[[2, 10]] = -100
    ours = fused.linear_cross_entropy(hidden, weight, targets, items)
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / (9 if items is None else items)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(3 * ours, hidden, weight), gradients(3 * theirs, hidden, weight), strict=True):
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
    torch.testing.assert_close(grad.float(), gradients(expected.sum(), wide)[0], rtol=1e-2, atol=1e-6)


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
