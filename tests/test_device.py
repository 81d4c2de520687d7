"""The machine: never guessed."""

import torch

from rung.device import choose_device, describe, has_fast_bfloat16


def test_the_device_is_there():
    torch.zeros(1, device=choose_device())


def test_bfloat16_is_what_the_processor_says(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, wanted in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert has_fast_bfloat16(cpu) is wanted


def test_describe_is_in_words():
    assert "cores of" in describe(torch.device("cpu"))
