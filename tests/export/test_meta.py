"""Meta's own folder: what is no value of `params.json`, what is no file of weights, what leads out
of the folder.
"""

import json
import shutil

import pytest
import torch

from rung import runs
from rung.errors import RungError
from rung.export.export import export
from rung.export.meta_params import LARGEST, NULLABLE, POSITIVE_NUMBERS, WHOLE_NUMBERS
from rung.models import load

NO_NUMBERS = (
    "many",
    "64",
    None,
    {},
    [64],
    {"n": [1]},
    True,
    -1,
    0,
    -(10**30),
    10**400,
    float("nan"),
    float("inf"),
)


@pytest.fixture(scope="module")
def whole(make_tiny, tokenizer, tmp_path_factory):
    """A tiny Llama in Meta's format."""
    place = tmp_path_factory.mktemp("meta")
    runs.save_model(runs.make_folder(place / "run"), make_tiny("llama3"), tokenizer)
    export(str(place / "run"), "meta", place / "meta")
    return place / "meta"


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(whole, tmp_path / "meta")


def assert_refused(folder, said):
    with pytest.raises(RungError) as caught:
        export(str(folder), "hf", folder.parent / "out")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize("key", [*WHOLE_NUMBERS, *POSITIVE_NUMBERS, "use_scaled_rope"])
def test_a_value_of_another_kind_is_named_in_a_line(key, folder):
    path = folder / "params.json"
    params = json.loads(path.read_text())
    values = ["yes", 1, None, [True]] if key == "use_scaled_rope" else list(NO_NUMBERS)
    values += [1.5, 64.0, LARGEST + 1] if key in WHOLE_NUMBERS else []
    for value in values:
        if value is None and key in NULLABLE:
            continue
        path.write_text(json.dumps(params | {key: value}))
        assert_refused(folder, f"params.json: {key} is {json.dumps(value):.60}, and must be ")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"dim": 33}, "hidden_size 33 cannot be divided by 4 attention heads"),
        ({"n_heads": 3}, "hidden_size 32 cannot be divided by 3 attention heads"),
        ({"n_kv_heads": 3}, "num_attention_heads 4 cannot be divided by 3 key-value heads"),
        ({"dim": 36}, "an attention head is 9 wide"),
        ({"n_layers": 10**6}, "n_layers is 1000000, and must be a whole number from 1 to 1000"),
        (
            {"dim": LARGEST - 3, "vocab_size": LARGEST, "n_kv_heads": 1},
            "params.json: no model is as it says (",
        ),
        ({"multiple_of": LARGEST}, "should be"),
        ({"ffn_dim_multiplier": 1e-9, "multiple_of": 1}, "intermediate_size is 0"),
        ({"n_kv_heads": None}, "should be"),
        ({"vocab_size": 300}, "should be"),
    ],
)
def test_values_that_no_model_has_together_are_named_in_a_line(facts, said, folder):
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | facts))
    if "vocab_size" in facts:
        (folder / "tokenizer.json").unlink()  # which would be asked first
    assert_refused(folder, said)


def test_what_nobody_computes_with_may_be_anything(folder):
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(
        json.dumps(params | {"note": [1, None], "ffn_dim_multiplier": None} | params)
    )
    export(str(folder), "hf", folder.parent / "out")
    assert load(folder.parent / "out")


@pytest.mark.parametrize("text", ["", "[1]", "null", '{"dim": ', "[" * 100_000])
def test_damaged_params_are_named_in_a_line(text, folder):
    (folder / "params.json").write_text(text)
    assert_refused(folder, "params.json is damaged: ")


@pytest.mark.parametrize("kind", ["text", "empty", "list", "text in a dictionary", "cut"])
def test_what_is_no_file_of_weights_is_named_in_a_line(kind, folder):
    path = folder / "consolidated.00.pth"
    if kind in ("list", "text in a dictionary"):
        torch.save([1] if kind == "list" else {"norm.weight": "one"}, path)
    else:
        path.write_bytes({"text": b"weights", "empty": b""}.get(kind, path.read_bytes()[:3000]))
    assert_refused(folder, "consolidated.00.pth: its weights could not be read (")


def test_a_head_without_an_embedding_is_of_no_llama(folder):
    weights = torch.load(folder / "consolidated.00.pth", weights_only=True)
    del weights["tok_embeddings.weight"]
    torch.save(weights, folder / "consolidated.00.pth")
    assert_refused(folder, "its weights lack tok_embeddings.weight")


@pytest.mark.parametrize(
    "name", ["params.json", "consolidated.00.pth", "tokenizer.json", "tokenizer.model"]
)
def test_nothing_is_read_over_a_link_out_of_the_folder(name, folder):
    elsewhere = folder.parent / "secret"
    if (folder / name).exists():
        (folder / name).replace(elsewhere)
    else:
        elsewhere.write_text("a key")
    (folder / name).symlink_to(elsewhere)
    assert_refused(folder, f"{name} leads out of the folder, to ")
