"""GGUF: what llama.cpp computes from the file that we wrote, and what is refused."""

import contextlib
import json
import os
import re
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

import rung.export.gguf
from rung import runs
from rung.chat.packing import ConversationDataset
from rung.chat.template import (
    CHATML_FORMAT,
    LLAMA3_FORMAT,
    encode_conversations,
    encode_prompt,
    set_up_chat_format,
)
from rung.data.tokenizer import encode_ordinary
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RunError, TokenizerError
from rung.export.export import export
from rung.export.tiktoken import LLAMA3_PATTERN
from rung.generation.decoder import Decoder, generate_tokens
from rung.generation.sampling import Sampling
from rung.models import load
from rung.models.gpt2 import GPT2LMHeadModel
from rung.models.llama3 import LlamaForCausalLM
from rung.models.sizes import rope_parameters

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'rung[export]'")

AWKWARD = (
    "two  spaces, three   spaces\n\n\nand lines\r\n\tand a tab ",
    "I'll say: it's 3.14159, 1234567 or 10,000; we've DON'T 'S",
    "naïve café, Straße, Ελληνικά, русский, 日本語, עברית",
    "🙂 family: 👩‍👩‍👧‍👦, flags 🇨🇭, zero​width, nbsp here",
    "def f(x):\n    return {'a': [x**2 for x in range(10)]}  # why not?\n",
    " begins with a space",
    "_underscores__and-dashes--and...dots!!! (brackets)[[]]",
)
TEXT = (
    "the cat sat on the mat, and a dog sat on a log. it's 3 o'clock; naïve café! def f(x):\n    "
    "return x + 12\n\n" * 40
)
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
STEPS = {"llama3": 60, "gpt2": 140}  # until they say some of it


@pytest.fixture(scope="module")
def tokenizers():
    """One that cuts text as GPT-2 does, of our own training; one that cuts it as Llama 3 does."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, by_bytes])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    llama = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=specials[0], eos_token=specials[1]
    )
    return {"gpt2": build_tokenizer("bpe", [TEXT], 400), "llama3": llama}


@pytest.fixture(scope="module")
def make_run(tokenizers, tmp_path_factory):
    """A function that makes a run of a model that knows TEXT a little: trained for a second, so it
    says something.
    """

    def make(name, cut="gpt2", steps=None, **fields):
        tokenizer = tokenizers[cut]
        ids = {
            "vocab_size": len(tokenizer),
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": None,
        }
        torch.manual_seed(0)
        if name == "llama3":
            wide = {"intermediate_size": 96, "num_key_value_heads": 2}
            model = LlamaForCausalLM(LlamaConfig(**SHAPE, **wide, **ids, **fields))
        else:
            still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
            model = GPT2LMHeadModel(GPT2Config(**SHAPE, **ids, **still, **fields))
        _train(
            model.train(),
            torch.tensor(encode_ordinary(tokenizer, [TEXT])[0].ids),
            steps or STEPS[name],
        )
        folder = tmp_path_factory.mktemp("runs") / name
        runs.save_model(runs.make_folder(folder), model.eval(), tokenizer)
        runs.write_record(folder, {"rung": name})
        return folder

    return make


def _train(model, ids, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        starts = torch.randint(
            0, len(ids) - 80, (8,), generator=torch.Generator().manual_seed(step)
        )
        rows = torch.stack(
            [torch.cat([torch.tensor([0]), ids[start : start + 80]]) for start in starts]
        )
        model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@contextlib.contextmanager
def _quiet():
    """llama.cpp writes to the standard error of the process."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _llama_cpp(path):
    """A server of the model, computing as exactly as it can: keys and values in float32, plain
    attention.
    """
    xllamacpp = pytest.importorskip(
        "xllamacpp", reason="xllamacpp is not installed: pip install xllamacpp"
    )
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 128, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    with _quiet():
        server = xllamacpp.Server(params)
        yield server
        del server


def _greedy(server, prompt, count):
    asked = {"prompt": prompt, "n_predict": count, "temperature": 0, "top_k": 1, "ignore_eos": True}
    return _ask(server, "completion", **asked, return_tokens=True)["tokens"]


def _own_greedy(folder, prompt, count):
    model, _ = load(folder)
    with torch.inference_mode():
        steps = generate_tokens(
            Decoder(model), [prompt], Sampling(temperature=0, max_new_tokens=count), ()
        )
        return [step[0] for step in steps]


def _ask(server, what, **facts):
    request = urllib.request.Request(
        f"{server.listening_address}/{what}",
        json.dumps(facts).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama3", {"tie_word_embeddings": True}),
        (
            "llama3",
            {
                "head_dim": 32,
                "attention_bias": True,
                "rms_norm_eps": 1e-5,
                "rope_parameters": rope_parameters(None),
            },
        ),
        (
            "llama3",
            {"rope_parameters": {**rope_parameters(8.0), "original_max_position_embeddings": 32}},
        ),
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}),
    ],
    ids=["llama-tied", "llama-untied", "llama-scaled", "gpt2-tied", "gpt2-untied"],
)
def test_llama_cpp_writes_the_same_tokens(name, fields, make_run, tmp_path):
    folder = make_run(name, **fields)
    said = export(str(folder), "gguf", tmp_path / "model.gguf", "f32")
    assert "read back, logits differ by at most" in said
    prompt = [0, *load(folder)[1]("the cat", add_special_tokens=False).input_ids]
    ours = _own_greedy(folder, prompt, 64)
    with _llama_cpp(tmp_path / "model.gguf") as server:
        assert _greedy(server, prompt, 64) == ours
    assert len(set(ours)) > 8, "a model that says one thing proves nothing"


@pytest.mark.parametrize("cut", ["gpt2", "llama3"])
def test_llama_cpp_reads_the_same_tokens(cut, make_run, tmp_path):
    folder = make_run("llama3", cut, steps=1)
    export(str(folder), "gguf", tmp_path / "model.gguf")
    tokenizer = load(folder)[1]
    with _llama_cpp(tmp_path / "model.gguf") as server:
        for text in AWKWARD:
            found = _ask(server, "tokenize", content=text, add_special=False)["tokens"]
            assert found == encode_ordinary(tokenizer, [text])[0].ids, text
        begun = _ask(server, "tokenize", content="the cat", add_special=True)["tokens"]
        assert begun[0] == tokenizer.bos_token_id
        ended = _ask(server, "tokenize", content="the<|end_of_text|>", parse_special=True)["tokens"]
        assert ended[-1] == tokenizer.eos_token_id


TALKS = [
    [
        {"role": "user", "content": f"the {one}"},
        {"role": "assistant", "content": f"{one} sat on {other} {count}"},
    ]
    for count, (one, other) in enumerate(
        [("cat", "the mat"), ("dog", "a log"), ("mat", "it, naïve café"), ("o", "x")]
    )
]
ASKED = [*TALKS[0], {"role": "user", "content": "the dog"}]


@pytest.mark.parametrize(("name", "cut"), [("llama3", "llama3"), ("gpt2", "gpt2")])
def test_llama_cpp_answers_as_we_do(name, cut, make_run, tmp_path):
    """A model that was tuned to chat: the template in the file, its special tokens, and where an
    answer ends.
    """
    folder = make_run(name, cut, steps=1)
    model, tokenizer = load(folder)
    set_up_chat_format(model, tokenizer, LLAMA3_FORMAT if name == "llama3" else CHATML_FORMAT)
    _tune(
        model.train(),
        ConversationDataset(
            encode_conversations(tokenizer, [*TALKS, [*ASKED, TALKS[1][1]]]), 127, 0, packed=True
        ),
    )
    runs.save_model(folder, model.eval(), tokenizer)
    export(str(folder), "gguf", tmp_path / "chat.gguf", "f32")
    ends = set(model.generation_config.eos_token_id)
    with _llama_cpp(tmp_path / "chat.gguf") as server:
        for messages in (TALKS[0][:1], TALKS[2][:1], ASKED):
            prompt = encode_prompt(tokenizer, messages)
            ours = _own_greedy(folder, prompt, 40)
            said = next(([*ours[:at]] for at, token in enumerate(ours) if token in ends), None)
            assert said, "an answer that has no end proves nothing of it"
            found = _ask(
                server,
                "v1/chat/completions",
                messages=messages,
                temperature=0,
                top_k=1,
                max_tokens=40,
            )
            assert found["usage"]["prompt_tokens"] == len(prompt)
            assert found["choices"][0]["message"]["content"] == tokenizer.decode(said)
            assert found["choices"][0]["finish_reason"] == "stop"


def _tune(model, examples):
    batch = examples.__getitems__(list(range(len(examples))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_a_smaller_type_costs_little(name, make_run, tmp_path):
    folder = make_run(name, steps=20)
    sizes, differences = [], []
    for type in ("f32", "f16", "q8_0"):
        said = export(str(folder), "gguf", tmp_path / f"{type}.gguf", type)
        sizes.append((tmp_path / f"{type}.gguf").stat().st_size)
        differences.append(float(said.split()[-1]))
    assert sizes == sorted(sizes, reverse=True)
    assert differences == sorted(differences)
    kinds = {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(tmp_path / "q8_0.gguf").tensors
    }
    assert kinds["blk.0.attn_output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == kinds.get("position_embd.weight", "F32") == "F32"


def test_rows_that_blocks_do_not_divide_stay_in_float16(make_tiny, tokenizer, tmp_path):
    runs.save_model(
        runs.make_folder(tmp_path / "run"), make_tiny("llama3", intermediate_size=72), tokenizer
    )
    export(str(tmp_path / "run"), "gguf", tmp_path / "model.gguf", "q8_0")
    kinds = {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors
    }
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_what_the_file_says(make_run, tmp_path, tokenizers):
    folder = make_run("llama3", "llama3", steps=1)
    (tmp_path / "chat").mkdir()
    export(str(folder), "hf", tmp_path / "chat/model")
    tokenizer = load(folder)[1]
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "chat/model")
    GenerationConfig(eos_token_id=[1, 2]).save_pretrained(tmp_path / "chat/model")
    export(str(tmp_path / "chat/model"), "gguf", tmp_path / "chat.gguf")
    fields = gguf.GGUFReader(tmp_path / "chat.gguf").fields
    said = {key: field.contents() for key, field in fields.items()}
    assert said["tokenizer.ggml.pre"] == "llama-bpe"
    assert said["tokenizer.chat_template"] == tokenizer.chat_template
    assert [said[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")] == [0, 1, 2]
    assert said["tokenizer.ggml.add_bos_token"] is False, (
        "this folder is no run, and its tokenizer adds none"
    )
    assert said["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert said["llama.rope.freq_base"] == load(folder)[0].config.rope_parameters["rope_theta"]
    with _llama_cpp(tmp_path / "chat.gguf") as server:
        asked = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2}
        assert server.handle_chat_completions(asked)["usage"]["prompt_tokens"] == 2


def test_a_published_checkpoint_of_gpt2_has_other_names(make_run, tmp_path):
    """Those of the Hub leave out the prefix, and hold the causal masks."""
    from safetensors.torch import load_file, save_file

    folder = make_run("gpt2", steps=1)
    export(str(folder), "gguf", tmp_path / "ours.gguf", "f32")
    path = folder / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file({**bare, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, path, {"format": "pt"})
    export(str(folder), "gguf", tmp_path / "published.gguf", "f32")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "published.gguf").read_bytes()


def test_large_models_are_compared_weight_by_weight(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(rung.export.gguf, "COMPARED_BYTES", 0)
    folder = make_run("llama3", steps=1)
    for type in ("f32", "f16", "q8_0"):
        said = export(str(folder), "gguf", tmp_path / f"{type}.gguf", type)
        assert "read back, weights differ by at most" in said


@pytest.mark.parametrize("compared", [0, 2**32])
def test_a_file_that_is_not_the_model_is_not_kept(compared, make_run, tmp_path, monkeypatch):
    folder = make_run("llama3", steps=1)
    monkeypatch.setattr(rung.export.gguf, "COMPARED_BYTES", compared)
    write = gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(
        gguf.GGUFWriter, "write_tensor_data", lambda writer, data: write(writer, data[::-1].copy())
    )
    with pytest.raises(RunError, match="is not what is read back"):
        export(str(folder), "gguf", tmp_path / "model.gguf", "f32")
    assert not list(tmp_path.iterdir())


def test_weights_beyond_float16_are_found(make_run, tmp_path):
    folder = make_run("llama3", steps=1)
    model, tokenizer = load(folder)
    model.model.embed_tokens.weight.data[5, 5] = 1e6
    runs.save_model(folder, model, tokenizer)
    with pytest.raises(RunError, match="need --type f32"):
        export(str(folder), "gguf", tmp_path / "model.gguf", "f16")
    export(str(folder), "gguf", tmp_path / "model.gguf", "f32")


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("rnn", {}, "'rung-rnn' model cannot be written as GGUF.*--to hf"),
        ("ngram", {}, "--to arpa"),
        ("swaps", {}, "knows gpt2 and llama3"),
        (
            "gpt2",
            {"activation_function": "relu"},
            "activation_function is 'relu': llama.cpp computes 'gelu_new'",
        ),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    name, fields, said, make_tiny, tokenizer, tmp_path
):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(name, **fields), tokenizer)
    with pytest.raises(RunError, match=said):
        export(str(tmp_path / "run"), "gguf", tmp_path / "model.gguf")


def test_tokenizers_that_llama_cpp_cuts_otherwise_are_refused(make_run, tmp_path):
    folder = make_run("llama3", steps=1)
    spec = json.loads((folder / "tokenizer.json").read_text())
    digits = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, spec["pre_tokenizer"]],
    }
    for change, said in (
        ({"pre_tokenizer": digits}, "BPE after Digits then ByteLevel"),
        ({"normalizer": {"type": "NFC"}}, "cut as GPT-2 or Llama 3"),
        ({"model": {**spec["model"], "ignore_merges": True}}, "cut as GPT-2 or Llama 3"),
        ({"model": {**spec["model"], "merges": []}}, "merges no bytes"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps(spec | change))
        with pytest.raises(TokenizerError, match=said):
            export(str(folder), "gguf", tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote(make_run, tmp_path, monkeypatch):
    from rung.cli.main import app

    def run(*args):
        result = CliRunner().invoke(app, ["export", str(folder), *args])
        return result.exit_code, result.stderr

    folder = make_run("gpt2", steps=1)
    monkeypatch.chdir(tmp_path)
    code, said = run("model.gguf", "--to", "gguf", "--type", "q8_0")
    assert code == 0
    assert "Wrote model.gguf: 0." in said
    assert "MB, q8_0; read back, logits differ by at most" in said
    assert "is there already" in run("model.gguf", "--to", "gguf")[1]
    assert "is a folder" in run(".", "--to", "gguf")[1]
    assert "did you mean 'q8_0'?" in run("other.gguf", "--to", "gguf", "--type", "q8")[1]
    assert "--type is 'f16'" in run("clean", "--to", "hf", "--type", "f16")[1]
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'rung[export]'" in run("other.gguf", "--to", "gguf")[1]


def test_the_code_in_the_documentation_runs(make_run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install xllamacpp")
    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "xllamacpp" in block
    )
    export(str(make_run("llama3", steps=1)), "gguf", tmp_path / "my-llama.gguf")
    monkeypatch.chdir(tmp_path)
    with _quiet():
        exec(code, {})
    assert len(capsys.readouterr().out) > 1


def test_a_full_disk_is_said_in_a_line(make_run, tmp_path, limit_files):
    folder = make_run("gpt2", steps=1)
    with (
        limit_files(60_000),
        pytest.raises(RunError, match="could not be written to .*: make room there"),
    ):
        export(str(folder), "gguf", tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
