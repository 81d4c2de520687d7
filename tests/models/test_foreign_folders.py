"""Folders of other models: how they are loaded, what their scores say, and what is refused."""

import json
import math
import pickle

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5ForConditionalGeneration,
)

from rung import model_files
from rung.errors import RunError
from rung.evaluation.documents import NO_BOS, tokenize_documents
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.models.foreign import ForeignForCausalLM
from rung.models.load_options import LoadOptions
from rung.models.loading import load, load_rung
from tests.conftest import SENTENCES, make_text, overflow, run_rung, shake, write
from tests.models.foreign import TINY, WINDOW, build

TEXTS = ("the cat sat on the mat", "a dog is not a cat")


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A function that returns a folder of this model, with a tokenizer that lacks what is named."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def find(kind="gpt_neox", lacks=(), dtype=torch.float32, **settings):
        key = kind, tuple(lacks), dtype, tuple(settings.items())
        if key not in made:
            made[key] = root / str(len(made))
            build(kind, tokenizer, **settings).to(dtype).save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
            change(made[key], "tokenizer_config.json", **dict.fromkeys(lacks))
        return made[key]

    return find


def change(folder, name, **facts):
    path = folder / name
    values = (json.loads(path.read_text()) if path.exists() else {}) | facts
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def copy_folder(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def refused(folder, *options):
    found = run_rung("score", folder, "the cat", *options)
    line = " ".join(found.stderr.split())
    assert (found.returncode, found.stdout) == (2, ""), found
    assert found.stderr.count("\n") < 8
    return line


def test_a_folder_is_loaded_as_it_is(folders, tokenizer):
    model, read = load(folders())
    assert isinstance(model, ForeignForCausalLM)
    assert (model.context_length, model.dtype, model.training) == (WINDOW, torch.float32, False)
    score = score_documents(model, read, TEXTS)
    assert (score.window, score.stride) == (WINDOW, WINDOW // 2)
    assert (score.has_bos, score.end_scored, score.dtype) == (True, True, "float32")
    inner = AutoModelForCausalLM.from_pretrained(folders())
    ids = [document.ids for document in tokenize_documents(TEXTS, tokenizer)]
    expected = compute_nll(ForeignForCausalLM(inner), ids)
    assert score.nats == pytest.approx(sum(nats.double().sum().item() for nats in expected))


def test_weights_are_read_as_they_are_stored_or_as_the_option_says(folders):
    folder = folders(dtype=torch.bfloat16)
    assert load(folder)[0].dtype == torch.bfloat16
    exact = load(str(folder), LoadOptions(dtype="float32"))
    costs = [score_documents(*loaded, TEXTS) for loaded in (load(folder), exact)]
    assert [score.dtype for score in costs] == ["bfloat16", "float32"]
    assert costs[0].nats == pytest.approx(costs[1].nats, rel=0.02)
    table = run_rung("score", folder, "the cat").stdout
    assert "read in bfloat16" in table
    assert "read in" not in run_rung("score", folder, "the cat", "--dtype", "float32").stdout
    assert "--dtype is 'int8'" in refused(folder, "--dtype", "int8")


def test_a_document_without_bos_begins_with_a_token_at_log_v(folders):
    model, read = load(folders(lacks=["bos_token"]))
    (document,) = tokenize_documents(TEXTS[:1], read)
    assert read.bos_token_id is None
    assert document.ids[0] == NO_BOS
    (nats,) = compute_nll(model, [document.ids])
    assert nats[0].item() == pytest.approx(math.log(model.config.vocab_size))
    with torch.no_grad():
        logits = model(torch.tensor([document.ids[1:-1]])).logits[0].double().log_softmax(-1)
    rest = -logits.gather(-1, torch.tensor(document.ids[2:])[:, None])[:, 0]
    torch.testing.assert_close(nats[1:].double(), rest, atol=1e-5, rtol=1e-5)
    pieces = score_text(model, read, TEXTS[0])
    assert pieces[0].bits == pytest.approx(math.log2(model.config.vocab_size))
    assert "".join(piece.text for piece in pieces) == TEXTS[0]


def test_without_bos_the_harness_asks_the_rest_after_the_first_token(folders, tokenizer):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rung[eval]'")
    from lm_eval.models.huggingface import HFLM

    model, read = load(folders(lacks=["bos_token"]))
    (document,) = tokenize_documents(TEXTS[:1], read)
    ids = document.ids[1:-1]
    judge = HFLM(pretrained=model.inner, tokenizer=tokenizer, max_length=WINDOW, batch_size=1)
    ((rest, _),) = judge._loglikelihood_tokens([(None, ids[:1], ids[1:])], disable_tqdm=True)
    total = compute_nll(model, [document.ids])[0][:-1].double().sum().item()
    assert total - math.log(model.config.vocab_size) == pytest.approx(-rest, rel=1e-6)


def test_a_document_without_an_end_stands_in_a_column_of_its_own(folders, make_tiny, tmp_path):
    folder = folders(lacks=["eos_token"])
    model, read = load(folder)
    score, whole = score_documents(model, read, TEXTS), score_documents(*load(folders()), TEXTS)
    assert not score.end_scored
    assert score.tokens == whole.tokens - len(TEXTS)
    assert score.nats < whole.nats
    assert not score_text(model, read, TEXTS[0])[-1].end
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[0])
    table = run_rung("eval", folder, text).stdout
    assert "bits per byte, ends not scored" in table
    assert "no end-of-text token" in " ".join(table.split())
    found = json.loads(run_rung("eval", folder, text, "--json").stdout)
    assert (found["end_scored"], found["has_bos"]) == (False, True)
    # So does a Llama that rung's own code reads.
    llama = copy_folder(folder, tmp_path / "llama")
    make_tiny("llama3").save_pretrained(llama)
    found = json.loads(run_rung("eval", llama, text, "--json").stdout)
    assert (found["end_scored"], found["has_bos"]) == (False, True)
    # Generation goes on to its length, and needs a prompt where nothing else begins a text.
    bare = folders(lacks=["eos_token", "bos_token", "pad_token"])
    said = run_rung("generate", bare, "the cat", "--max-new-tokens", 5, "--json")
    assert json.loads(said.stdout)["tokens"] == 5
    assert "give a prompt" in run_rung("generate", bare, "").stderr


def test_special_tokens_that_a_tokenizer_adds_are_not_counted_twice(folders, tokenizer, tmp_path):
    from tokenizers.processors import TemplateProcessing

    folder = copy_folder(folders(), tmp_path / "adds")
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer_file = json.loads((folder / "tokenizer.json").read_text())
    ids = [(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    made = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=ids)
    tokenizer_file["post_processor"] = json.loads(made.__getstate__())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_file))
    _, read = load(folder)
    adding = read(TEXTS[0]).input_ids
    (document,) = tokenize_documents(TEXTS[:1], read)
    (plain,) = tokenize_documents(TEXTS[:1], tokenizer)
    assert document.ids == plain.ids
    assert adding == [tokenizer.bos_token_id, *plain.ids[1:-1], tokenizer.eos_token_id]


def test_a_window_is_the_models_own_or_the_one_that_is_named(folders):
    def read(kind, window):
        return load(str(folders(kind)), LoadOptions(window=window))[0].context_length

    assert read("gpt_neox", 16) == 16
    assert read("gpt_neox", 4 * WINDOW) == 4 * WINDOW  # its positions are computed
    assert read("mamba2", 32) == 32
    assert read("opt", WINDOW) == WINDOW
    assert "--window is 65" in refused(folders("opt"), "--window", WINDOW + 1)
    assert "the positions that it has" in refused(folders("opt"), "--window", WINDOW + 1)
    assert "--window is 1" in refused(folders(), "--window", 1)
    score = score_documents(
        *load(str(folders()), LoadOptions(window=16)), [" ".join(SENTENCES * 3)]
    )
    assert (score.window, score.stride) == (16, 8)


def test_rungs_take_the_options_too(make_tiny, tokenizer, tmp_path):
    for name in ("gpt2", "rnn", "bigram"):
        make_tiny(name).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    score = score_documents(
        *load(str(tmp_path / "gpt2"), LoadOptions(window=16)), [" ".join(SENTENCES * 3)]
    )
    assert (score.window, score.stride) == (16, 8)
    assert "the positions that it has" in refused(tmp_path / "gpt2", "--window", 65)
    assert "has no window" in refused(tmp_path / "rnn", "--window", 16)
    assert "counts, so it has no weights" in refused(tmp_path / "bigram", "--dtype", "bfloat16")
    assert load(str(tmp_path / "rnn"), LoadOptions(dtype="bfloat16"))[0].dtype == (torch.bfloat16)


def test_a_vocabulary_may_be_padded_but_not_too_small(folders, tokenizer, tmp_path):
    rows = len(tokenizer)
    model, read = load(folders(vocab_size=rows + 20))
    assert score_documents(model, read, TEXTS).bits_per_byte > 0
    assert "do not belong together" in refused(folders(vocab_size=rows - 20))
    # A special token beyond the embedding, as of images: no text is encoded to it.
    folder = copy_folder(folders(), tmp_path / "image")
    _, more = load(folder)
    more.add_special_tokens({"additional_special_tokens": ["<image>"]})
    more.save_pretrained(folder)
    assert load(folder)[0].config.vocab_size == rows


CODE = """
import pathlib
from transformers import MistralConfig, MistralForCausalLM
pathlib.Path(__file__).with_suffix(".ran").touch()
class OwnConfig(MistralConfig):
    model_type = "own"
class OwnForCausalLM(MistralForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_a_folder_brings_runs_only_where_the_user_says_so(folders, tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    modules = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    folder = copy_folder(folders("mistral"), tmp_path / "own")
    (folder / "own.py").write_text(CODE)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    change(folder, "config.json", model_type="own", auto_map=own)
    assert "--trust-remote-code" in refused(folder)
    assert not list(tmp_path.rglob("*.ran"))
    trusted = run_rung("score", folder, "the cat", "--trust-remote-code", "--json")
    assert trusted.returncode == 0, trusted.stderr
    assert list(modules.rglob("*.ran"))
    plain = run_rung("score", folders("mistral"), "the cat", "--json")
    assert json.loads(trusted.stdout)["bits"] == json.loads(plain.stdout)["bits"]


def test_what_is_no_causal_language_model_is_refused_in_a_line(folders, tokenizer, tmp_path):
    small = {"vocab_size": len(tokenizer), "num_layers": 1, "d_model": 16, "d_ff": 16, "d_kv": 4}
    T5ForConditionalGeneration(T5Config(**small, num_heads=2)).save_pretrained(tmp_path / "t5")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2}
    clip = CLIPConfig(text_config=tower | {"vocab_size": 50}, vision_config=tower, projection_dim=8)
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    bert = BertConfig(vocab_size=len(tokenizer), **tower)
    shake(AutoModelForCausalLM.from_config(bert)).save_pretrained(tmp_path / "bert")
    for name in ("t5", "clip", "bert"):
        tokenizer.save_pretrained(tmp_path / name)
    assert "reads by an encoder and writes by a decoder" in refused(tmp_path / "t5")
    assert "'clip' model, which is no causal language model" in refused(tmp_path / "clip")
    assert "'bert' model is not causal" in refused(tmp_path / "bert")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("LlamaForSequenceClassification", "a classifier or a reward model"),
        ("LlamaModel", "the body of a model without the head"),
        ("GPTNeoXModel", "the body of a model without the head"),
        ("BertModel", "the body of a model without the head"),  # tied, but not its bias
        ("BertForMaskedLM", "fills gaps from both sides"),
    ],
)
def test_a_model_without_the_head_of_a_language_model_is_named(name, what, tokenizer, tmp_path):
    model_class = getattr(transformers, name)
    model_class(model_class.config_class(vocab_size=len(tokenizer), **TINY)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RunError, match=f"is a {name}, .*{what}.* of a class named ...ForCausalLM"):
        load(tmp_path)


def test_a_llama_without_bos_says_so_as_any_other_model_does(make_tiny, tokenizer, tmp_path):
    """A run keeps its own: its documents began with the end-of-text token in training."""
    make_tiny("llama3").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    change(tmp_path, "tokenizer_config.json", bos_token=None)
    model, read = load(tmp_path)
    score = score_documents(model, read, TEXTS[:1])
    assert (score.has_bos, score.end_scored) == (False, True)
    (document,) = tokenize_documents(TEXTS[:1], read)
    (nats,) = compute_nll(model, [document.ids])
    assert nats[0].item() == pytest.approx(math.log(model.config.vocab_size))
    (tmp_path / model_files.RECORD).write_text("{}")
    assert load(tmp_path)[1].bos_token == read.eos_token


def test_damage_and_what_is_missing_are_named_in_a_line(folders, tokenizer, tmp_path):
    broken = build("gpt_neox", tokenizer)
    broken.get_output_embeddings().weight.data[0] = math.nan
    broken.save_pretrained(tmp_path / "nan")
    overflow(build("gpt_neox", tokenizer)).save_pretrained(tmp_path / "large")
    for name in ("nan", "large"):
        tokenizer.save_pretrained(tmp_path / name)
        assert "in place of a number" in refused(tmp_path / name)
    bare = copy_folder(folders(), tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    assert "has no tokens: copy" in refused(bare)
    cut = copy_folder(folders(), tmp_path / "cut")
    weights = cut / model_files.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "weights could not be read" in refused(cut) or "damaged" in refused(cut)
    pickled = copy_folder(folders(), tmp_path / "pickled")
    (pickled / model_files.WEIGHTS).unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    assert "save them as model.safetensors" in refused(pickled)
    lacking = copy_folder(folders(), tmp_path / "lacking")
    change(lacking, "config.json", num_hidden_layers=3)
    assert "its weights lack" in refused(lacking)
    vast = copy_folder(folders(), tmp_path / "vast")
    change(vast, "config.json", vocab_size=10**9)
    assert "parameters, and its weights hold" in refused(vast)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    change(adapter, "adapter_config.json", base_model_name_or_path="org/base")
    assert "merge it into org/base" in refused(adapter)
    quantized = copy_folder(folders(), tmp_path / "quantized")
    change(quantized, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "install" in refused(quantized)


def test_a_llama_that_rungs_code_does_not_know_is_read_by_transformers(
    make_tiny, tokenizer, tmp_path
):
    llama = make_tiny("llama3")
    llama.save_pretrained(tmp_path / "yarn")
    tokenizer.save_pretrained(tmp_path / "yarn")
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}
    rope |= {"original_max_position_embeddings": 32}
    change(tmp_path / "yarn", "config.json", rope_parameters=rope, rope_scaling=None)
    model, _ = load(tmp_path / "yarn")
    inner = AutoModelForCausalLM.from_pretrained(tmp_path / "yarn")
    ids = torch.tensor([[0, 5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, inner(ids).logits)
        assert (model(ids).logits - llama(ids).logits).abs().max() > 1e-4
    assert isinstance(model, ForeignForCausalLM)
    with pytest.raises(RunError, match="needs a model that rung has code of its own for"):
        load_rung(tmp_path / "yarn", "a base")


def test_the_harness_runs_its_tasks_on_it(folders, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rung[eval]'")
    question = {"question": "the cat sat on", "choices": ["the mat", "is"], "answer": 0}
    write(tmp_path / "questions.jsonl", json.dumps(question) + "\n")
    task = {"task": "mine", "dataset_path": "json", "test_split": "test"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}}}
    task |= {"output_type": "multiple_choice", "doc_to_text": "{{question}}"}
    task |= {"doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    task |= {"metric_list": [{"metric": "acc"}]}
    page = write(tmp_path / "mine.yaml", json.dumps(task))
    for lacks in ((), ("bos_token",)):
        found = run_rung("eval", folders(lacks=lacks), "--tasks", page, "--json")
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["tasks"]["mine"]["documents"] == 1


def test_a_server_completes_and_scores_prompts_of_it(folders):
    testclient = pytest.importorskip("fastapi.testclient", reason="pip install 'rung[serve]'")
    from rung.serve.app import build_app
    from rung.serve.registry import load_served_models

    folder = folders(lacks=["bos_token"])
    served = load_served_models([str(folder)], LoadOptions(window=32))
    (name,) = served
    with testclient.TestClient(build_app(served)) as client:
        body = {"model": name, "prompt": "the cat", "max_tokens": 3, "temperature": 0}
        made = client.post("/v1/completions", json=body | {"echo": True, "logprobs": 1}).json()
        empty = client.post("/v1/completions", json=body | {"prompt": ""})
        shown = client.get("/api/rungs").json()
    (choice,) = made["choices"]
    assert choice["text"].startswith("the cat")
    assert choice["logprobs"]["token_logprobs"][0] is None  # it follows nothing
    assert made["usage"]["completion_tokens"] == 3
    assert (empty.status_code, "write a word" in empty.text) == (400, True)
    assert "gpt_neox" in json.dumps(shown)


def test_what_needs_rungs_own_code_refuses_in_a_line(folders, tmp_path):
    text, out = tmp_path / "text", tmp_path / "out"
    for seed, split in enumerate(("train", "valid", "test")):
        write(text / split / "text.txt", make_text(4, seed))
    commands = {
        ("tune", folders(), "--out", out): "needs a model that rung has code of its own for",
        (
            "train",
            "llama3",
            text,
            "--set",
            f"base={folders()}",
            "--out",
            out,
        ): "a base needs a model",
        ("export", folders(), out, "--to", "gguf"): "gpt_neox",
        ("export", folders(), out, "--to", "arpa"): "ARPA holds n-grams",
        ("eval", folders(), text, "--dynamic"): "rung trains its own models only",
        ("eval", folders("gemma2"), text, "--cache"): "changes what its head says",
        ("generate", folders(), "the", "--draft", "prompt"): "a draft needs a gpt2 or llama3",
        ("generate", folders(), "the", "--weights", "int8"): "leave --weights out",
    }
    for command, said in commands.items():
        found = run_rung(*command)
        assert found.returncode == 2, (command, found.stderr)
        assert said in " ".join(found.stderr.split()), found.stderr
        assert not out.exists()
