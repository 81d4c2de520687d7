"""Published models in and out: Hugging Face folders and Meta's own, and the tokenizer of Llama
3.
"""

import base64
import json
import sys
import textwrap

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import rung.export.hf
from rung import runs
from rung.errors import RunError, TokenizerError
from rung.export.export import export
from rung.export.meta import interleave, meta_name, separate
from rung.export.meta_params import config_from_params, params_from_config
from rung.export.tiktoken import read_tiktoken, write_tiktoken
from rung.models import load
from rung.models.sizes import published_config
from tests.conftest import SENTENCES

SCALED = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0} | {
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TINY_PAIRS = (b"th", b"the", b" t", b" the", b"at", b"an", b" a")


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory):
    """A `tokenizer.model` of the bytes and a few pairs."""
    path = tmp_path_factory.mktemp("tiktoken") / "tokenizer.model"
    tokens = [bytes([byte]) for byte in range(256)] + list(TINY_PAIRS)
    path.write_bytes(
        b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for rank, t in enumerate(tokens))
    )
    return path


@pytest.fixture(scope="session")
def llama_models():
    """Meta's own package."""
    return pytest.importorskip(
        "llama_models", reason="llama-models is not installed: pip install 'rung[peers]'"
    )


@pytest.fixture
def make_folder(tokenizer_model, tmp_path):
    """A function that makes a Hugging Face folder of a tiny random Llama with Meta's tokenizer."""

    def make(name="stock", dtype=torch.float32, shard="5GB", **settings):
        tokenizer = read_tiktoken(tokenizer_model)
        shape = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **{**shape, "num_key_value_heads": 2, "rope_parameters": SCALED,
               "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, **settings},
        )  # fmt: skip
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).to(dtype)
        for parameter in model.parameters():  # norms of 1 would hide which is which
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name, transformers.LlamaForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float32
        ).eval()

    return make


def tensors_of(folder):
    return {
        key: value
        for path in folder.glob("*.safetensors")
        for key, value in load_file(path).items()
    }


def consolidated(folder):
    return torch.load(folder / "consolidated.00.pth", weights_only=True, mmap=True)


def assert_same(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        assert torch.equal(ours[key], value), key


IDS = torch.tensor([[5, 260, 77, 300, 8, 9, 101, 262, 12]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["100KB", "5GB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stock_folder_opens(tied, shard, dtype, make_folder):
    folder, model = make_folder(tie_word_embeddings=tied, shard=shard, dtype=dtype)
    assert (len(list(folder.glob("*.safetensors"))) == 1) == (shard == "5GB")
    ours, _ = load(folder)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float()(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_a_stock_gpt2_opens(tied, shard, make_tiny, tokenizer, tmp_path):
    model = transformers.GPT2LMHeadModel(make_tiny("gpt2", tie_word_embeddings=tied).config).eval()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shard == "5GB")
    torch.testing.assert_close(
        load(tmp_path)[0](IDS % 200).logits, model(IDS % 200).logits, rtol=1e-5, atol=1e-5
    )


def test_the_published_gpt2_has_names_and_masks_of_its_own(make_tiny, tokenizer, tmp_path):
    """It was saved without its head and with the causal mask of each layer."""
    model = transformers.GPT2LMHeadModel(make_tiny("gpt2").config).eval()
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = {
        name.removeprefix("transformer."): t
        for name, t in model.state_dict().items()
        if name != "lm_head.weight"
    }
    weights |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(
        load(tmp_path)[0](IDS % 200).logits, model(IDS % 200).logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_meta_and_back_is_the_same_to_the_bit(tied, scaled, dtype, make_folder, tmp_path):
    rope = {} if scaled else {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    folder, model = make_folder(
        tie_word_embeddings=tied, dtype=dtype, max_position_embeddings=96, **rope
    )
    export(str(folder), "meta", tmp_path / "meta")
    export(str(tmp_path / "meta"), "hf", tmp_path / "again")
    assert_same(tensors_of(tmp_path / "again"), tensors_of(folder))
    kept = transformers.AutoConfig.from_pretrained(tmp_path / "again").to_diff_dict()
    assert kept == {**model.config.to_diff_dict(), "dtype": kept["dtype"]}
    export(str(tmp_path / "again"), "meta", tmp_path / "twice")
    assert_same(consolidated(tmp_path / "twice"), consolidated(tmp_path / "meta"))
    assert (tmp_path / "twice/params.json").read_text() == (
        tmp_path / "meta/params.json"
    ).read_text()
    assert (tmp_path / "twice/tokenizer.model").read_bytes() == (
        tmp_path / "meta/tokenizer.model"
    ).read_bytes()
    ours, tokenizer = load(tmp_path / "again")
    torch.testing.assert_close(ours.float()(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    assert (
        tokenizer.decode(tokenizer(SENTENCES[0]).input_ids, skip_special_tokens=True)
        == SENTENCES[0]
    )


PARALLEL = {
    "attention.wo": 1,
    "feed_forward.w2": 1,
    "norm": None,
    "attention_norm": None,
    "ffn_norm": None,
}


@pytest.mark.parametrize("split", [0, 1])
def test_two_parallel_files_are_one_model(split, make_folder, tmp_path):
    """`split`: the axis of the embedding, as in Llama 3 or in Llama 2."""
    folder, _ = make_folder(tie_word_embeddings=False)
    export(str(folder), "meta", tmp_path / "meta")
    whole = consolidated(tmp_path / "meta")
    (tmp_path / "two").mkdir()
    axes = PARALLEL | {"tok_embeddings": split}
    for rank in range(2):
        parts = {"rope.freqs": torch.ones(3)}
        for name, tensor in whole.items():
            kind = name.removesuffix(".weight")
            axis = axes.get(kind.split(".", 2)[-1] if kind.startswith("layers.") else kind, 0)
            parts[name] = tensor if axis is None else tensor.chunk(2, axis)[rank].clone()
        torch.save(parts, tmp_path / f"two/consolidated.0{rank}.pth")
    for name in ("params.json", "tokenizer.model"):
        (tmp_path / "two" / name).write_bytes((tmp_path / "meta" / name).read_bytes())
    export(str(tmp_path / "two"), "hf", tmp_path / "joined")
    assert_same(tensors_of(tmp_path / "joined"), tensors_of(folder))


REFERENCE = """
    import json, sys, types
    import torch
    from torch import nn

    def linear(inputs, outputs, bias, **_): return nn.Linear(inputs, outputs, bias=bias)
    def table(size, width, **_): return nn.Embedding(size, width)
    layers = types.ModuleType("layers")  # of one process: fairscale's layers are these
    layers.ColumnParallelLinear = layers.RowParallelLinear = linear
    layers.VocabParallelEmbedding = table
    world = types.ModuleType("initialize")
    world.get_model_parallel_world_size = lambda: 1
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.model_parallel"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["fairscale.nn.model_parallel"].initialize = world
    sys.modules["fairscale.nn.model_parallel.initialize"] = world
    sys.modules["fairscale.nn.model_parallel.layers"] = layers
    sys.modules["rung"] = None
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    folder, ids = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
    params = json.load(open(folder + "/params.json"))
    model = Transformer(ModelArgs(max_seq_len=64, max_batch_size=2, **params))
    weights = torch.load(folder + "/consolidated.00.pth", weights_only=True)
    model.load_state_dict(weights, strict=True)
    pieces = [model(ids[:, :5], 0), model(ids[:, 5:6], 5), model(ids[:, 6:], 6)]
    torch.save(torch.cat(pieces, 1), folder + "/logits.pt")
"""


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_key_value_heads": 4, "rope_parameters": None}, {"tie_word_embeddings": True}],
)
def test_metas_own_code_computes_the_same(settings, make_folder, llama_models, tmp_path, run_fork):
    folder, _ = make_folder(intermediate_size=100, **settings)
    export(str(folder), "meta", tmp_path / "meta")
    program, ids = textwrap.dedent(REFERENCE), json.dumps(IDS.tolist())
    ran = run_fork("-c", program, tmp_path / "meta", ids)
    assert ran.returncode == 0, ran.stderr
    theirs = torch.load(tmp_path / "meta/logits.pt", weights_only=True)
    torch.testing.assert_close(load(folder)[0](IDS).logits, theirs, rtol=1e-5, atol=1e-5)


def test_rows_are_turned_as_meta_turns_them():
    weight = torch.arange(16.0)[:, None]
    assert separate(weight, 2).flatten().tolist()[:8] == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(interleave(separate(weight, 2), 2), weight)


@pytest.mark.parametrize(
    ("ours", "metas"),
    [
        ("3_8b", "llama3-8b"),
        ("3_70b", "llama3-70b"),
        ("3_1_8b", "llama3.1-8b"),
        ("3_1_70b", "llama3.1-70b"),
        ("3_2_1b", "llama3.2-1b"),
        ("3_2_3b", "llama3.2-3b"),
    ],
)
def test_published_params_are_metas(ours, metas, llama_models):
    from llama_models.sku_list import all_registered_models

    args = next(
        m.arch_args for m in all_registered_models() if m.core_model_id.name == f"llama{ours}"
    )
    config = published_config(metas)
    assert params_from_config(config) == args
    again = config_from_params(args, tied=config.tie_word_embeddings).to_diff_dict()
    assert {**again, "bos_token_id": 128_000, "eos_token_id": 128_001} == {
        key: value
        for key, value in config.to_diff_dict().items()
        if key not in ("architectures", "dtype")
    }


@pytest.mark.parametrize("inner", [32, 97, 100, 352, 1376, 11_008])
def test_any_width_of_the_mlp_can_be_said(inner):
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, intermediate_size=inner
    )
    assert config_from_params(params_from_config(config), tied=False).intermediate_size == inner


def test_another_tokenizer_travels_as_it_is(make_tiny, tokenizer, tmp_path):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny("llama3"), tokenizer)
    runs.write_record(tmp_path / "run", {"rung": "llama3"})
    export(str(tmp_path / "run"), "meta", tmp_path / "meta")
    assert not (tmp_path / "meta/tokenizer.model").exists()
    export(str(tmp_path / "meta"), "hf", tmp_path / "again")
    ours, its = load(tmp_path / "again")
    assert its(SENTENCES[0]).input_ids == tokenizer(SENTENCES[0]).input_ids
    ids = torch.tensor([its(SENTENCES[0]).input_ids])
    assert torch.equal(ours(ids).logits, load(tmp_path / "run")[0](ids).logits)
    with pytest.raises(TokenizerError, match="after them 256 special tokens"):
        write_tiktoken(tokenizer, tmp_path / "tokenizer.model")


@pytest.mark.parametrize("name", ["gpt2", "llama3", "rnn", "ngram"])
def test_a_run_becomes_a_clean_folder(name, make_tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(rung.export.hf, "SHARD_SIZE", "30KB")
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(name), tokenizer)
    runs.write_record(tmp_path / "run", {"rung": name})
    export(str(tmp_path / "run"), "hf", tmp_path / "clean")
    assert not (tmp_path / "clean/rung.json").exists()
    assert name == "ngram" or (tmp_path / "clean/model.safetensors.index.json").exists()
    assert_same(tensors_of(tmp_path / "clean"), tensors_of(tmp_path / "run"))
    ids = torch.tensor([tokenizer(SENTENCES[0]).input_ids])
    assert torch.equal(
        load(tmp_path / "clean")[0](ids).logits, load(tmp_path / "run")[0](ids).logits
    )


def test_what_fails_leaves_nothing(make_folder, tmp_path, monkeypatch):
    folder, _ = make_folder()
    export(str(folder), "meta", tmp_path / "meta")

    def fail(*_):
        raise KeyboardInterrupt

    for source, name in ((tmp_path / "meta", "hf"), (folder, "hf"), (folder, "meta")):
        monkeypatch.setattr("rung.export.hf.write_bytes", fail)
        monkeypatch.setattr("rung.export.torch_archive.write_bytes", fail)
        with pytest.raises(KeyboardInterrupt):
            export(str(source), name, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["meta", "stock"]


def test_what_cannot_be_is_refused(make_folder, make_tiny, tokenizer, tmp_path):
    folder, _ = make_folder()
    export(str(folder), "meta", tmp_path / "meta")
    with pytest.raises(RunError, match="rung export .*meta OUT --to hf"):
        load(tmp_path / "meta")
    with pytest.raises(RunError, match="is not empty"):
        export(str(folder), "hf", tmp_path / "meta")
    with pytest.raises(RunError, match="is no folder: make it first"):
        export(str(folder), "hf", tmp_path / "nowhere/out")
    with pytest.raises(RunError, match="no run at"):
        export(str(tmp_path / "nowhere"), "hf", tmp_path / "out")
    runs.save_model(runs.make_folder(tmp_path / "gpt2"), make_tiny("gpt2"), tokenizer)
    with pytest.raises(RunError, match="it holds Llama 3"):
        export(str(tmp_path / "gpt2"), "meta", tmp_path / "out")
    biased, _ = make_folder("biased", attention_bias=True)
    with pytest.raises(RunError, match="attention_bias is True"):
        export(str(biased), "meta", tmp_path / "out")
    weights, params = tmp_path / "meta/consolidated.00.pth", tmp_path / "meta/params.json"
    whole, kept = torch.load(weights, weights_only=True), json.loads(params.read_text())
    for damage, said in (
        ({**kept, "dim": 128}, "should be"),
        ({**kept, "vision_chunk_size": 448}, "text alone: it has vision_chunk_size"),
        ({"dim": 64}, "it has no n_heads"),
        ({**kept, "vocab_size": 600}, "has 519 tokens"),
        ({**kept, "n_layers": 3}, "lack layers.2"),
    ):
        params.write_text(json.dumps(damage))
        with pytest.raises(RunError, match=said):
            export(str(tmp_path / "meta"), "hf", tmp_path / "out")
    params.write_text(json.dumps(kept))
    torch.save({key: value for key, value in whole.items() if key != "norm.weight"}, weights)
    with pytest.raises(RunError, match="lack norm.weight"):
        export(str(tmp_path / "meta"), "hf", tmp_path / "out")
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(RunError, match="could not be read"):
        export(str(tmp_path / "meta"), "hf", tmp_path / "out")
    weights.unlink()
    with pytest.raises(RunError, match="has no consolidated"):
        export(str(tmp_path / "meta"), "hf", tmp_path / "out")
    (tmp_path / "tokenizer.model").write_text("\n\x0b▁the -3.1\n")
    with pytest.raises(TokenizerError, match="no tokenizer of Llama 3"):
        read_tiktoken(tmp_path / "tokenizer.model")
    assert not (tmp_path / "out").exists()


STOCK = """
    import sys
    sys.modules["rung"] = None  # to import it is an error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    for folder in sys.argv[2:]:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = ["the cat", "a dog sat on the"]
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        ids = model.generate(**batch, max_new_tokens=5, do_sample=False)
        torch.save([ids, model(ids).logits], folder + "/stock.pt")
    assert not any(name.startswith("rung.") for name in sys.modules)
"""


def test_stock_transformers_opens_ours(
    make_tiny, make_folder, tokenizer, tmp_path, monkeypatch, run_fork
):
    folder, _ = make_folder()
    export(str(folder), "meta", tmp_path / "meta")
    export(str(tmp_path / "meta"), "hf", tmp_path / "from-meta")
    monkeypatch.setattr(rung.export.hf, "SHARD_SIZE", "30KB")
    for name in ("gpt2", "llama3"):
        for tied in (True, False):
            model = make_tiny(name, tie_word_embeddings=tied)
            runs.save_model(runs.make_folder(tmp_path / f"{name}-{tied}"), model, tokenizer)
            export(str(tmp_path / f"{name}-{tied}"), "hf", tmp_path / f"{name}-{tied}-sharded")
    folders = [tmp_path / "from-meta", *tmp_path.glob("gpt2-*"), *tmp_path.glob("llama3-*")]
    ran = run_fork("-c", textwrap.dedent(STOCK), "-", *folders)
    assert ran.returncode == 0, ran.stderr
    for folder in folders:
        ids, logits = torch.load(folder / "stock.pt", weights_only=True)
        ours, its = load(folder)
        batch = its(["the cat", "a dog sat on the"], padding=True, return_tensors="pt")
        assert torch.equal(ours.generate(**batch, max_new_tokens=5, do_sample=False), ids)
        torch.testing.assert_close(ours(ids).logits, logits, rtol=1e-5, atol=1e-5)


def test_names_are_all_there(make_folder):
    _, model = make_folder()
    assert meta_name("model.layers.11.mlp.up_proj.weight") == "layers.11.feed_forward.w3.weight"
    assert len({meta_name(name) for name in model.state_dict()}) == len(model.state_dict())


MEASURE = """
    import resource, sys
    from pathlib import Path
    from rung.export.export import export

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    for format in ("meta", "hf"):
        export(sys.argv[1], format, Path(sys.argv[2]) / f"warm-{format}")
    before = peak()
    for source, format, out in zip(sys.argv[3::3], sys.argv[4::3], sys.argv[5::3]):
        export(source, format, Path(out))
    print(peak() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads the memory of a process as Linux tells it"
)
@pytest.mark.slow
def test_a_checkpoint_needs_the_memory_of_a_tensor(make_folder, tmp_path, run_fork):
    """A checkpoint of 120 MB, of which the largest tensor has 8: copied, to Meta's format and
    back.
    """
    small, _ = make_folder("small")
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
    }
    big, _ = make_folder("big", **shape, num_key_value_heads=8, shard="50MB")
    assert sum(path.stat().st_size for path in big.glob("*.safetensors")) > 110e6
    steps = [
        (big, "hf", tmp_path / "copy"),
        (big, "meta", tmp_path / "meta"),
        (tmp_path / "meta", "hf", tmp_path / "back"),
    ]
    args = [part for step in steps for part in step]
    ran = run_fork("-c", textwrap.dedent(MEASURE), small, tmp_path, *args)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 30, "MB of memory beyond the libraries'"
    assert_same(tensors_of(tmp_path / "back"), tensors_of(big))
