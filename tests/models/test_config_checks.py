"""What no configuration may hold: refused in one line when it is made, read from a folder, or built
by hand.
"""

import json
import re
import shutil

import pytest
import torch
import transformers

from rung import runs
from rung.errors import RecipeError, RunError, RungError
from rung.models import build_model, config_fields, load, make_config
from rung.models.config_checks import MAX_LAYERS, MIN_INTEGERS, check_config
from rung.models.llama3 import LlamaForCausalLM
from rung.models.loading import read_config
from tests.conftest import TINY

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
ROPE |= {"original_max_position_embeddings": 16}
LLAMA = {
    "an unknown activation": (
        {"hidden_act": "nope"},
        "hidden_act is 'nope', which is no activation",
    ),
    "an odd head": ({"head_dim": 7}, "an attention head is 7 wide"),
    "more key-value heads than heads": (
        {"num_key_value_heads": 8},
        "4 cannot be divided by 8 key-value heads",
    ),
    "no key-value heads": ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    "a window of one": (
        {"max_position_embeddings": 1},
        "max_position_embeddings is 1: it must be a whole number, 2",
    ),
    "too many layers": (
        {"num_hidden_layers": 1_000_000},
        f"num_hidden_layers is 1000000: it must be {MAX_LAYERS} or less",
    ),
    "half a layer": (
        {"num_hidden_layers": 1.5},
        "num_hidden_layers is 1.5: it must be a whole number",
    ),
    "a truth for a number": (
        {"num_hidden_layers": True},
        "num_hidden_layers is True: it must be a whole number",
    ),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "negative width": ({"intermediate_size": -4}, "intermediate_size is -4"),
    "too much dropout": (
        {"attention_dropout": 1.5},
        "attention_dropout is 1.5: it must be a number from 0 to 1",
    ),
    "no epsilon": ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0: it must be a number above 0"),
    "a rotation of another kind": (
        {"rope_parameters": ROPE | {"rope_type": "yarn"}},
        "rope_type 'yarn' is not known",
    ),
    "a rotation that is a number": (
        {"rope_parameters": 5},
        "rope_parameters is 5: it must be a mapping, as in {rope_type: default, rope_theta: "
        "500000.0}, or left out",
    ),
    "a rotation that is a list": (
        {"rope_parameters": [ROPE]},
        "rope_parameters is [{'rope_type': 'llama3'",
    ),
    "a rotation's base in letters": (
        {"rope_parameters": ROPE | {"rope_theta": "far"}},
        "rope_parameters.rope_theta is 'far': it must be a number above 0",
    ),
    "a rotation's factor in a list": (
        {"rope_parameters": ROPE | {"factor": [8]}},
        "rope_parameters.factor is [8]",
    ),
    "a width beyond all": (
        {"hidden_size": 10**400},
        "0000: it must be 9223372036854775807 or less",
    ),
    "an epsilon beyond all": ({"rms_norm_eps": 10**400}, "0000: it must be a number above 0"),
    "a text for a switch": (
        {"attention_bias": "no"},
        "attention_bias is 'no': it must be true or false, or left out",
    ),
    "a list for a name": (
        {"hidden_act": ["silu"]},
        "hidden_act is ['silu']: it must be a text, or left out",
    ),
    "a rotation without its factor": ({"rope_parameters": ROPE | {"factor": None}}, "lack factor"),
    "frequencies the wrong way": (
        {"rope_parameters": ROPE | {"low_freq_factor": 4.0}},
        "high_freq_factor 4.0 must be above low_freq_factor 4.0",
    ),
}
OTHERS = {
    "gpt2: activation": ("gpt2", {"activation_function": "nope"}, "activation_function is 'nope'"),
    "gpt2: window": ("gpt2", {"max_position_embeddings": 1}, "max_position_embeddings is 1"),
    "gpt2: heads": (
        "gpt2",
        {"num_attention_heads": 3},
        "hidden_size 32 cannot be divided by 3 attention heads",
    ),
    "gpt2: encoder": ("gpt2", {"add_cross_attention": True}, "there is no encoder"),
    "gpt2: dropout": ("gpt2", {"attn_pdrop": -0.1}, "attn_pdrop is -0.1"),
    "swaps: odd head": (
        "swaps",
        {"hidden_size": 36, "num_attention_heads": 4, "swaps": ["rotary"]},
        "an attention head is 9 wide",
    ),
    "swaps: a number for a list": (
        "swaps",
        {"swaps": 5},
        "swaps is 5: it must be a list, of which each is a text",
    ),
    "rnn: a number for a name": ("rnn", {"cell": 5}, "cell is 5: it must be a text, or left out"),
    "rnn: a number for a switch": (
        "rnn",
        {"head_bias": 1},
        "head_bias is 1: it must be true or false, or left out",
    ),
    "ngram: a number for a list": (
        "ngram",
        {"prune": 5},
        "prune is 5: it must be a list, of which each is a whole",
    ),
    "ngram: letters in a list": (
        "ngram",
        {"prune": [0, "x"]},
        "prune is [0, 'x']: it must be a list",
    ),
    "ngram: a text for a number": (
        "ngram",
        {"k": "much"},
        "k is 'much': it must be a number, or left out",
    ),
    "infini-gram: a number for a list": (
        "infini-gram",
        {"discounts": 5},
        "discounts is 5: it must be a list",
    ),
    "gpt2: a list for a number": (
        "gpt2",
        {"initializer_range": [1]},
        "initializer_range is [1]: it must be a number",
    ),
    "swaps: window": ("swaps", {"max_position_embeddings": 1}, "max_position_embeddings is 1"),
    "swaps: key-value heads": (
        "swaps",
        {"num_key_value_heads": 3},
        "4 cannot be divided by 3 key-value heads",
    ),
    "rnn: window": ("rnn", {"max_position_embeddings": 1}, "max_position_embeddings is 1"),
    "rnn: cell": ("rnn", {"cell": "gur"}, "unknown cell 'gur': did you mean 'gru'"),
    "rnn: dropout": ("rnn", {"dropout": 2}, "dropout is 2: it must be a number from 0 to 1"),
    "rnn: layers": ("rnn", {"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000"),
    "rnn-attention: heads": (
        "rnn-attention",
        {"num_attention_heads": 3},
        "32 cannot be divided by 3 attention heads",
    ),
    "rnn-attention: window": (
        "rnn-attention",
        {"max_position_embeddings": 1},
        "max_position_embeddings is 1",
    ),
    "ngram: order": ("ngram", {"order": 1_000_000}, "order is 1000000: it must be 1000 or less"),
    "ngram: no order": ("ngram", {"order": 0}, "order is 0"),
    "ngram: sizes": ("ngram", {"num_ngrams": [5, -1, 2]}, "num_ngrams is [5, -1, 2]: it must list"),
    "bigram: size": (
        "bigram",
        {"num_bigrams": -1},
        "num_bigrams is -1: it must be a whole number, 0 or more",
    ),
    "infini-gram: size": ("infini-gram", {"num_tokens": -1}, "num_tokens is -1"),
    "bigram: vocabulary": (
        "bigram",
        {"vocab_size": 0},
        "vocab_size is 0: it must be a whole number, 1 or more",
    ),
}
CASES = {f"llama3: {key}": ("llama3", *case) for key, case in LLAMA.items()} | OTHERS


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_cannot_ask_for_it(case, tokenizer):
    name, settings, message = CASES[case]
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        make_config(name, tokenizer, {**TINY[name], **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in TINY for key in ("hidden_size", "vocab_size")]
)
def test_a_field_set_to_nothing_is_refused(name, key, tokenizer):
    """As `--set hidden_size=$UNSET` gives it."""
    if key not in config_fields(name):
        pytest.skip(f"{name} has no {key}")
    with pytest.raises(RecipeError, match=f"model.{key} has no value: give one, or leave it out"):
        make_config(name, tokenizer, {key: None})


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "num_attention_heads", "hidden_act", "rms_norm_eps"]
)
def test_of_llama_no_field_that_counts_may_be_nothing(key, tokenizer):
    with pytest.raises(RecipeError, match=f"model.{key} has no value"):
        make_config("llama3", tokenizer, {key: None})
    assert make_config("llama3", tokenizer, {"num_key_value_heads": None}).num_key_value_heads


def test_an_odd_width_has_one_head_or_is_refused(tokenizer):
    assert make_config("gpt2", tokenizer, {"hidden_size": 7}).n_head == 1
    with pytest.raises(RecipeError, match="an attention head is 31 wide"):
        make_config("llama3", tokenizer, {"hidden_size": 31})


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_holds_it_is_refused(case, tokenizer, tmp_path):
    name, settings, message = CASES[case]
    values = make_config(name, tokenizer, TINY[name]).to_dict()
    settings = {
        "n_positions" if name == "gpt2" and k == "max_position_embeddings" else k: v
        for k, v in settings.items()
    }
    settings = {
        "n_head" if name == "gpt2" and k == "num_attention_heads" else k: v
        for k, v in settings.items()
    }
    (tmp_path / "config.json").write_text(json.dumps(values | settings))
    # Rung's own code refuses it; `load` has transformers read a Llama that turns otherwise.
    refuse = read_config if "another kind" in case else load
    with pytest.raises(RunError) as caught:
        refuse(tmp_path)
    said = str(caught.value).replace("n_positions", "max_position_embeddings")
    assert message in said
    assert str(tmp_path) in said
    assert "\n" not in said


@pytest.fixture(scope="module")
def folders(make_tiny, tokenizer, tmp_path_factory):
    """A folder of each rung."""
    place = tmp_path_factory.mktemp("rungs")
    for name in TINY:
        runs.save_model(runs.make_folder(place / name), make_tiny(name), tokenizer)
    return place


# Without a value each of these has the one that its class gives it, as in transformers; all others
# are refused.
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAY_BE_NULL = {"gpt2": ("n_inner", *IDS), "rnn": IDS, "rnn-attention": IDS, "swaps": IDS}
MAY_BE_NULL |= {
    "llama3": ("num_key_value_heads", "head_dim", "rope_parameters", "attention_dropout", *IDS)
}


@pytest.mark.parametrize("name", TINY)
def test_nothing_for_a_value_is_the_default_or_refused_by_its_name(name, folders, tmp_path):
    config = json.loads((folders / name / "config.json").read_text())
    passed = []
    for key in config.keys() - {"model_type"}:
        (tmp_path / "config.json").write_text(json.dumps(config | {key: None}))
        try:
            read_config(tmp_path)
            passed.append(key)
        except RunError as error:
            assert re.search(
                rf"could not be read: {key} has no value: give one, or leave it out$", str(error)
            ), error
    allowed = MAY_BE_NULL.get(name, ())
    assert {key for key in allowed if key in config} <= set(passed)
    assert not [key for key in passed if key in MIN_INTEGERS and key not in allowed]


def test_a_rotation_by_its_name_in_transformers_4_is_looked_at_too(folders, tmp_path):
    config = json.loads((folders / "llama3" / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"rope_parameters": None, "rope_scaling": 5})
    )
    with pytest.raises(
        RunError, match="rope_scaling is 5: it must be a mapping, as in {rope_type: default, "
    ) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_heads_and_dropout_without_a_value_are_as_in_transformers(folders, tmp_path):
    folder = shutil.copytree(folders / "llama3", tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    nothing = dict.fromkeys(("head_dim", "attention_dropout"))
    (folder / "config.json").write_text(json.dumps(config | nothing))
    ids = torch.tensor([[0, 5, 9, 7]])
    model = load(folder)[0]
    torch.testing.assert_close(model(ids).logits, load(folders / "llama3")[0](ids).logits)
    model.train()(ids, labels=ids).loss.backward()
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": None}))
    with pytest.raises(
        RunError, match=r"k_proj.weight is \[16, 32\] in its weights, \[32, 32\] by config.json"
    ):
        load(folder)


@pytest.mark.parametrize(
    "case",
    ["more key-value heads than heads", "a window of one", "too many layers", "too much dropout"],
)
def test_a_model_built_by_hand_is_refused(case, tokenizer):
    settings, message = LLAMA[case]
    config = make_config("llama3", tokenizer, TINY["llama3"])
    for key, value in settings.items():
        setattr(config, key, value)
    for look in (check_config, LlamaForCausalLM, lambda config: build_model("llama3", config)):
        with pytest.raises(RungError, match=re.escape(message)):
            look(config)


def test_the_published_configurations_pass():
    for config in (transformers.GPT2Config(), transformers.LlamaConfig()):
        check_config(config)


@pytest.mark.parametrize("name", TINY)
def test_a_configuration_may_be_made_empty(name, tokenizer):
    """As transformers makes one of each class, to leave out of a file what is as it always is."""
    kind = type(make_config(name, tokenizer, TINY[name]))
    check_config(kind())


def test_a_deep_model_is_built_in_time_that_grows_with_its_layers(tokenizer, monkeypatch):
    """No layer looks through all the others when it is initialised."""
    names = []
    kind = transformers.PreTrainedModel
    looks = kind.named_modules
    monkeypatch.setattr(
        kind, "named_modules", lambda self, *args, **options: names.append(1) or looks(self, *args)
    )
    seen = []
    for layers in (2, 12):
        names.clear()
        settings = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": layers}
        build_model("gpt2", make_config("gpt2", tokenizer, settings))
        seen.append(len(names))
    assert seen[0] == seen[1]
