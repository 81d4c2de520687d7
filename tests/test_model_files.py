"""The files of a model's folder: what leads out of it, what is damaged, and the names of
transformers 4.
"""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from rung import model_files, runs
from rung.data.tokenizer_loading import load_tokenizer
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RunError, RungError, TokenizerError
from rung.export.export import export
from rung.export.hf import read_weights
from rung.models import load
from rung.workflows.report import report_runs

DAMAGES = {
    "empty": "it is empty",
    '{"a": ': "it is no JSON",
    "[1, 2]": r"it holds \[1, 2\], and must hold names",
    "null": "it holds null",
}
DAMAGES |= {"[" * 100_000: "it is no JSON"}
INDEX = model_files.INDEX


@pytest.fixture(scope="module")
def whole(make_tiny, tokenizer, tmp_path_factory):
    """A run of GPT-2."""
    folder = runs.make_folder(tmp_path_factory.mktemp("runs") / "run")
    runs.save_model(folder, make_tiny("gpt2"), tokenizer)
    runs.write_record(folder, {"rung": "gpt2"})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def change(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def assert_refused(folder, said):
    """Whoever reads the folder says the same in one line, and nothing is exported."""
    for read in (load, lambda place: export(str(place), "hf", place.parent / "out")):
        with pytest.raises(RungError, match=said) as caught:
            read(folder)
        assert len(str(caught.value).splitlines()) == 1
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_damaged_json_is_named_in_a_line(name, folder):
    for text, said in DAMAGES.items():
        (folder / name).write_text("" if text == "empty" else text)
        assert_refused(folder, f"{name} is damaged: {said}")
    (folder / name).write_bytes(b"\xff\xfe")
    assert_refused(folder, f"{name} is damaged: it is not UTF-8")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_refused(folder, f"{name} is a folder: it must be a JSON file")


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        ("config.json", {"model_type": 5}, "config.json is damaged: model_type is 5, and must be "
                                           "text"),
        ("config.json", {"vocab_size": "many"}, "run could not be read: vocab_size is 'many': it "
                                                "must be a whole"),
        ("config.json", {"n_layer": 10**6}, "n_layer is 1000000: it must be 1000 or less"),
        ("config.json", {"n_embd": 64},
         r"\] in its weights, \[.*\] by config.json: one is damaged"),
        ("config.json", {"vocab_size": 10**9}, "wte.weight is \\[284, 32\\] in its weights, "
                                               "\\[1000000000, 32\\]"),
        ("config.json", {"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"},
         "code of its own, which is"),
        ("generation_config.json", {"eos_token_id": [1, "a"]}, r"eos_token_id is \[1, 'a'\], and "
                                                               r"must be a whole"),
        ("generation_config.json", {"max_length": "long"}, "max_length is 'long', and must be a "
                                                           "whole number"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template is 5, and must be text or a "
                                                        "list or an object"),
        ("tokenizer.json", {"model": {"type": "BPE"}}, "tokenizer.json is damaged: "),
    ],
)  # fmt: skip
def test_values_that_no_model_has_are_named_in_a_line(name, facts, said, folder):
    change(folder / name, **facts)
    assert_refused(folder, said)


@pytest.mark.parametrize("size", [0, 50, -100])
def test_cut_weights_are_named_in_a_line(size, folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert_refused(folder, "model.safetensors is damaged: .*copy it again")


def test_missing_weights_are_named_in_a_line(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.0.attn.c_attn.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_refused(folder, "its weights lack transformer.h.0.attn.c_attn.bias; the file is damaged")


@pytest.fixture
def make_index(folder):
    """A function that has an index name where each tensor is."""

    def make(place):
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").replace(folder / "part.safetensors")
        (folder / INDEX).write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, place)})
        )

    return make


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("../part.safetensors", "index.json names '.*': weights must lie in the folder itself"),
        ("/etc/passwd", "index.json names '/etc/passwd': weights must lie in the folder itself"),
        ("other.safetensors", "index.json names other.safetensors, which is not there"),
        (5, "index.json is damaged: its weight_map must name the file of each tensor"),
    ],
)
def test_an_index_stays_in_its_folder(place, said, folder, make_index):
    make_index(place)
    shutil.copyfile(folder / "part.safetensors", folder.parent / "part.safetensors")
    assert_refused(folder, said)


def test_an_index_is_read(folder, make_index):
    before = {
        name: tuple(tensor.shape)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    make_index("part.safetensors")
    assert model_files.read_shapes(folder) == before
    assert load(folder)
    (folder / INDEX).write_text('{"weight_map": [1]}')
    assert_refused(folder, "index.json is damaged: its weight_map must name")


def test_an_index_of_torchs_own_files_stays_in_its_folder_too(folder):
    (folder / "model.safetensors").unlink()
    for place, said in (
        ("../a.bin", "weights must lie in the folder itself"),
        ("a.bin", "which is not there"),
    ):
        (folder / model_files.BINARY_INDEX).write_text(
            json.dumps({"weight_map": {"wte.weight": place}})
        )
        assert_refused(folder, f"pytorch_model.bin.index.json names .*{said}")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("config.json", {"configuration_files": ["../config.4.0.0.json"]}),
        ("config.json", {"transformers_weights": "other.safetensors"}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]}),
    ],
)
def test_no_other_file_is_read_in_the_place_of_one_that_is_known(name, facts, folder):
    change(folder / name, **facts)
    (key,) = facts
    assert_refused(
        folder, f"{name}: {key} would have other files read than the model's own: leave it out"
    )


def test_an_adapter_beside_a_model_is_neither_merged_nor_left_out_in_silence(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    assert_refused(
        folder,
        "holds a model and an adapter, adapter_config.json, that is not merged into it: merge them",
    )


@pytest.mark.parametrize("name", ["rung.json", "metrics.jsonl"])
def test_no_record_is_read_over_a_link_out_of_the_folder(name, folder):
    elsewhere = folder.parent / "secret"
    elsewhere.write_text('{"rung": "gpt2", "prompt": "a key"}')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(RunError, match=f"{name} leads out of the folder, to .*secret: copy into"):
        (runs.read_record if name == "rung.json" else runs.read_metrics)(folder)


MADE = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors",
)
OTHERS = (
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "pytorch_model.bin",
    "README.md",
)
OTHERS += ("added_tokens.json", "rung.json", INDEX, model_files.BINARY_INDEX)
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/tools.jinja")


@pytest.mark.parametrize("name", [*MADE, *OTHERS, *TEMPLATES])
def test_nothing_is_read_or_published_over_a_link_out_of_the_folder(name, folder):
    elsewhere = folder.parent / "secret"
    if (folder / name).exists():
        (folder / name).replace(elsewhere)
    else:
        elsewhere.write_text("a key")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(RunError, match=f"{name} leads out of the folder, to .*secret: copy into"):
        export(str(folder), "hf", folder.parent / "out")
    assert not (folder.parent / "out").exists()
    if name != "README.md":  # no one reads it
        with pytest.raises(RunError, match="leads out of the folder"):
            load(folder)
        with pytest.raises(TokenizerError, match="leads out of the folder"):
            load_tokenizer(str(folder))


def test_links_within_a_folder_and_to_the_hubs_store_are_followed(folder, tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/main"
    shutil.copytree(folder, snapshot)
    store = runs.make_folder(tmp_path / "models--a--b/blobs")
    for path in list(snapshot.iterdir()):
        path.replace(store / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    (tmp_path / "linked").symlink_to(snapshot)
    (folder / "config.json").replace(folder / "its.json")
    (folder / "config.json").symlink_to("its.json")
    for number, place in enumerate((snapshot, tmp_path / "linked", folder)):
        assert load(place)
        export(str(place), "hf", tmp_path / f"out-{number}")
        assert not any(path.is_symlink() for path in (tmp_path / f"out-{number}").iterdir())


def test_every_template_of_a_tokenizer_is_published(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ 1 }}", "tools": "{{ 2 }}"}
    tokenizer.save_pretrained(folder)
    export(str(folder), "hf", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_a_tokenizer_of_more_tokens_than_the_model_has_rows_is_refused(
    folder, make_tiny, tokenizer, tmp_path
):
    longer = AutoTokenizer.from_pretrained(folder)
    longer.add_tokens(["<|eot_id|>", "<|more|>"], special_tokens=True)
    longer.save_pretrained(folder)
    with pytest.raises(
        RunError, match="its tokenizer has 286 tokens and its model knows 284: they do not belong"
    ):
        load(folder)
    padded = make_tiny("gpt2", vocab_size=320)
    runs.save_model(runs.make_folder(tmp_path / "padded"), padded, tokenizer)
    assert load(tmp_path / "padded")[0].config.vocab_size == 320


@pytest.mark.parametrize("scaled", [True, False])
def test_transformers_4_finds_its_names_and_5_its_own(scaled, make_tiny, tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**rope, "original_max_position_embeddings": 16} if scaled else {"rope_type": "default"}
    model = make_tiny("llama3", rope_parameters=rope | {"rope_theta": 500_000.0})
    its = build_tokenizer("bpe", ["the cat"], 300)
    its.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    runs.save_model(runs.make_folder(tmp_path / "run"), model, its)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["rope_theta"], config["rope_scaling"]) == (500_000.0, rope if scaled else None)
    assert config["torch_dtype"] == config["dtype"] == "float32"
    settings = json.loads((tmp_path / "run/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (
        settings["additional_special_tokens"] == ["<|tool|>"]
        and "extra_special_tokens" not in settings
    )
    assert (
        AutoConfig.from_pretrained(tmp_path / "run").rope_parameters == model.config.rope_parameters
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "run").extra_special_tokens == ["<|tool|>"]
    before = config | settings
    model_files.spell_for_transformers_4(tmp_path / "run")
    assert before == json.loads((tmp_path / "run/config.json").read_text()) | settings
    assert read_weights(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tokens_2", 10**6, "its 2-grams are damaged: a token is not among the 284"),
        ("tokens_3", -1, "its 3-grams are damaged: a token is not among"),
        ("first_1", 10**6, "its 2-grams are damaged: what follows a history is out of order"),
        (
            "log10_probability_2",
            float("nan"),
            "its 2-grams are damaged: a probability is no number",
        ),
    ],
)
def test_damaged_ngrams_are_named_in_a_line(name, value, said, make_tiny, tokenizer, tmp_path):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny("ngram"), tokenizer)
    weights = load_file(tmp_path / "run/model.safetensors")
    weights[name][3] = value
    save_file(weights, tmp_path / "run/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=said):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    ("rung", "name", "value", "said"),
    [
        ("bigram", "counts", -5, "its pairs are damaged: their counts do not add up"),
        ("bigram", "counts", float("nan"), "its pairs are damaged: their counts do not add up"),
        ("bigram", "contexts", float("inf"), "its pairs are damaged: their counts do not add up"),
        ("bigram", "tokens", 2**31 - 1, "its pairs are damaged: a token is not among the 284"),
        ("bigram", "tokens", -1, "its pairs are damaged: a token is not among the 284"),
        ("bigram", "first", -1, "its pairs are damaged: what follows a token is out of order"),
        ("ngram", "log10_backoff_1", float("nan"), "its 1-grams are damaged: a back-off weight is "
                                                   "no number"),
        ("infini-gram", "unigrams", -1.0, "its text is damaged: the shares of its tokens are no "
                                          "probabilities"),
        ("infini-gram", "unigrams", float("nan"), "its text is damaged: the shares of its tokens "
                                                  "are no"),
        ("infini-gram", "text.first", -5, "its text is damaged: its index is out of order"),
        ("infini-gram", "text.first_change", 2**31 - 1, "its text is damaged: its index is out of "
                                                        "order"),
        ("infini-gram", "text.tokens", 2**31 - 1, "its text is damaged: a token is not among the "
                                                  "284"),
        ("infini-gram", "text.tokens", -1, "its text is damaged: a token is not among the 284"),
        ("infini-gram", "text.suffixes", 2**31 - 1, "its text is damaged: its index points "
                                                    "elsewhere"),
        ("infini-gram", "text.suffixes", 1, "its text is damaged: its index points elsewhere"),
        ("infini-gram", "text.changes", -1, "its text is damaged: its index points elsewhere"),
        ("rnn", "*", float("nan"), "its weights are damaged: in .* there is nan; copy them again"),
        ("gpt2", "transformer.h.1.mlp.c_fc.bias", float("inf"), "weights are damaged: in "
                                                                ".*c_fc.bias there is inf"),
        ("llama3", "model.norm.weight", float("-inf"), "its weights are damaged: in "
                                                       "model.norm.weight there is -inf"),
    ],
)  # fmt: skip
def test_numbers_that_give_no_figure_are_named_in_a_line(
    rung, name, value, said, make_tiny, tokenizer, tmp_path
):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(rung), tokenizer)
    weights = load_file(tmp_path / "run/model.safetensors")
    weights[min(weights) if name == "*" else name].view(-1)[3] = value
    save_file(weights, tmp_path / "run/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=said) as caught:
        load(tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("discounts", [["a"], [float("nan")], [2.0]])
def test_discounts_that_are_none_are_named_in_a_line(discounts, make_tiny, tokenizer, tmp_path):
    pytest.importorskip("pydivsufsort", reason="n-grams of any length: pip install 'rung[scale]'")
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny("infini-gram"), tokenizer)
    change(tmp_path / "run/config.json", discounts=discounts)
    with pytest.raises(RunError, match="discounts"):
        load(tmp_path / "run")


def test_an_adapter_s_folder_is_called_one_by_every_verb(tmp_path):
    """Beside its run the run is named, whose weights have it."""
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    runs.write_record(tmp_path / "run", {"rung": "gpt2"})
    (tmp_path / "alone").mkdir()
    for folder, said in {
        tmp_path / "run" / "adapter": "is the adapter alone of the run .*run, .*: name the run",
        tmp_path / "alone": "holds an adapter and no model: merge it into ../base with",
    }.items():
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../base"}')
        for call in (
            lambda: export(str(folder), "hf", tmp_path / "out"),  # noqa: B023
            lambda: report_runs([str(folder)], tmp_path / "report.html"),  # noqa: B023
            lambda: load(str(folder)),  # noqa: B023
        ):
            with pytest.raises(RunError, match=said):
                call()
