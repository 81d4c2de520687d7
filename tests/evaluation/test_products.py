"""Tests of the products of scoring by oneDNN."""

import pytest
import torch
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from rung import device
from rung.evaluation import products
from rung.evaluation.likelihood import compute_nll
from rung.models import build_model, make_config

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def multiplied(monkeypatch):
    """The sizes of what oneDNN multiplies, on any processor."""
    found, multiply = [], products._multiply

    def note(x, weight, bias):
        found.append((x.shape[-1], len(weight)))
        return multiply(x, weight, bias)

    monkeypatch.setattr(products, "is_onednn_faster", lambda: True)
    monkeypatch.setattr(products, "_multiply", note)
    return found


@pytest.mark.parametrize("rung", ["rnn", "rnn-attention", "gpt2", "llama3"])
def test_every_rung_has_the_same_score(rung, multiplied, monkeypatch):
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 16}
    model = build_model(rung, make_config(rung, None, fields | {"vocab_size": 50})).eval()
    documents = [torch.randint(3, 50, (length,)).tolist() for length in (40, 2, 17)]
    found = compute_nll(model, documents)
    assert (32, 50) in multiplied  # the head
    assert rung != "gpt2" or (32, 96) in multiplied  # a Conv1D
    monkeypatch.setattr(products, "is_onednn_faster", lambda: False)
    torch.testing.assert_close(found, compute_nll(model, documents))


def test_a_product_is_the_same_in_any_layout(multiplied):
    x, weight, bias = torch.randn(3, 5, 7), torch.randn(11, 7), torch.randn(11)
    layer, cpu = Conv1D(11, 7), torch.device("cpu")
    for given in (x, x[:, ::2], x.transpose(0, 1), x[0], x[0, 0]):
        for table in (weight, weight.T.contiguous().T, torch.randn(22, 7)[::2]):
            for shift in (None, bias):
                with torch.no_grad(), products.fast_products(cpu):
                    found = F.linear(given, table, shift)
                torch.testing.assert_close(found, F.linear(given, table, shift))
    with torch.no_grad(), products.fast_products(cpu):
        found = layer(x)
    torch.testing.assert_close(found, layer(x).detach())
    assert len(multiplied) == 31


def test_other_products_stay(multiplied):
    x, weight = torch.randn(4, 7), torch.randn(11, 7)
    cpu = torch.device("cpu")
    with products.fast_products(cpu):
        F.linear(x, weight.requires_grad_()).sum().backward()
        with torch.no_grad():
            assert F.linear(x[:0], weight).shape == (0, 11)
            assert F.linear(x.double(), weight.double()).dtype == torch.float64
            assert F.linear(x, weight=weight).shape == (4, 11)
            assert F.linear(x, weight[0]).shape == (4,)
            assert torch.addmm(torch.ones(4, 11), x, weight.T).shape == (4, 11)
            assert torch.addmm(torch.ones(1), x, weight.T).shape == (4, 11)
            with torch.autocast("cpu", torch.bfloat16):
                assert F.linear(x, weight).dtype == torch.bfloat16
    assert weight.grad is not None and not multiplied


@pytest.mark.parametrize(
    ("capability", "name", "wanted"),
    [
        ("AVX512", "AMD EPYC 9B45", True),
        ("AVX2", "AMD EPYC 7B13", False),
        ("AVX512", "Intel(R) Xeon(R) Processor", False),
    ],
)
def test_mkl_is_left_where_it_does_not_use_the_processor(capability, name, wanted, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(device, "_processor_name", lambda: name)
    device.is_onednn_faster.cache_clear()
    assert device.is_onednn_faster() is wanted
    device.is_onednn_faster.cache_clear()
