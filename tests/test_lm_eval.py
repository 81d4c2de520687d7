"""Every rung under lm-evaluation-harness: its `hf` backend reads the model, and gives the ruler's numbers."""

import math

import pytest
from conftest import SENTENCES, TINY

from rung import runs
from rung.evaluate import score_text

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rung[eval]'")


@pytest.mark.parametrize("name", list(TINY))
def test_the_harness_gives_the_rulers_numbers(name, make_tiny, tokenizer, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = make_tiny(name)
    runs.save_model(runs.make_folder(tmp_path / name), model, tokenizer)
    harness = HFLM(
        pretrained=str(tmp_path / name),
        backend="causal",
        batch_size=2,
        device="cpu",
        max_length=64,
        add_bos_token=False,
    )
    texts = [*SENTENCES, "an unheard-of log"]
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=i) for i, text in enumerate(texts)
    ]
    for text, nats in zip(texts, harness.loglikelihood_rolling(requests, disable_tqdm=True), strict=True):
        expected = sum(piece.bits for piece in score_text(model, tokenizer, text)[:-1]) * math.log(2)  # no end there
        assert -nats == pytest.approx(expected, rel=1e-4)
    pairs = [
        Instance(request_type="loglikelihood", doc={}, arguments=("the cat sat on", " the mat"), idx=i)
        for i in range(3)
    ]
    assert len({harness_nats for harness_nats, _ in harness.loglikelihood(pairs, disable_tqdm=True)}) == 1
