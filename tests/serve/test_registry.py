"""The served models: their names and their fingerprints."""

from pathlib import Path

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
pytest.importorskip("httpx", reason=reason)

from rung import runs  # noqa: E402
from rung.errors import RunError  # noqa: E402
from rung.serve.registry import ServedModel, fingerprint_model, load_served_models, shorten_paths  # noqa: E402


def test_usage_and_fingerprint_are_those_of_openai(client, server, served, make_tiny, tokenizer):
    made = client.completions.create(model="gpt2", prompt="a", max_tokens=3)
    chat = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "a"}], max_tokens=3
    )
    assert made.usage.prompt_tokens_details.cached_tokens == 0
    assert chat.usage.completion_tokens_details.reasoning_tokens == 0
    assert (
        made.system_fingerprint
        == client.completions.create(model="gpt2", prompt="b").system_fingerprint
    )
    assert (
        made.system_fingerprint.startswith("fp_")
        and made.system_fingerprint != chat.system_fingerprint
    )
    assert (
        fingerprint_model(ServedModel("other name", served["gpt2"].model, tokenizer, {}))
        == made.system_fingerprint
    )
    assert (
        fingerprint_model(ServedModel("gpt2", make_tiny("gpt2"), tokenizer, {}))
        != made.system_fingerprint
    ), "other weights"


def test_runs_are_named_by_their_folders(make_tiny, tokenizer, tmp_path):
    for place in ("one/gpt2", "two/gpt2", "one/ngram"):
        folder = runs.make_folder(tmp_path / place)
        runs.save_model(folder, make_tiny(Path(place).name), tokenizer)
        runs.write_record(
            folder, {"rung": Path(place).name} | ({"scores": {}} if place != "one/ngram" else {})
        )
    assert list(load_served_models([str(tmp_path)])) == ["one/gpt2", "two/gpt2"]
    assert list(load_served_models([str(tmp_path / "one" / "ngram"), str(tmp_path / "one")])) == [
        "ngram",
        "gpt2",
    ]
    (tmp_path / "empty").mkdir()
    for nothing, message in (("empty", "holds no finished run"), ("missing", "no run at")):
        with pytest.raises(RunError, match=message):
            load_served_models([str(tmp_path / nothing)])
    assert shorten_paths([("a", "x"), ("b", "x"), ("y",)]) == ["a/x", "b/x", "y"]
