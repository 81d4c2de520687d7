"""The machine: never guessed."""

import pytest
import torch

from rung import device
from rung.device import choose_device, describe, has_fast_bfloat16


def test_the_device_is_there():
    torch.zeros(1, device=choose_device())


@pytest.mark.parametrize(
    ("capabilities", "gain", "wanted"),
    [
        ({"avx512_bf16": True}, 4.7, True),
        ({"amx_bf16": True}, 6.0, True),
        ({"avx512_bf16": True}, 0.6, False),  # there, and slower
        ({"avx2": True}, None, False),  # not there: not asked
    ],
)
def test_bfloat16_is_used_where_it_is_there_and_faster(capabilities, gain, wanted, monkeypatch):
    def measure():
        assert gain is not None
        return gain

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(device, "_bfloat16_gain", measure)
    assert has_fast_bfloat16(torch.device("cpu")) is wanted


def test_the_gain_is_measured_once_and_draws_nothing():
    before = torch.get_rng_state()
    assert device._bfloat16_gain() == device._bfloat16_gain() > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_describe_is_in_words():
    assert "cores of" in describe(torch.device("cpu"))
