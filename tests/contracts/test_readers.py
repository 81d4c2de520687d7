"""What others read of ours: runs and exports in the oldest and the newest transformers that their
users have.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import rung.export.hf
from rung import runs
from rung.chat.template import CHATML_FORMAT, LLAMA3_FORMAT, set_up_chat_format
from rung.data.tokenizer_training import BUILDERS, build_tokenizer
from rung.export.export import export
from rung.models import load
from rung.models.sizes import rope_parameters
from rung.training.lora import LoraAdapter
from tests.conftest import SENTENCES, shake

OLDEST = Path(__file__).parents[2] / ".venv-oldest/bin/python"
needs_oldest = pytest.mark.skipif(
    not OLDEST.exists(), reason="needs transformers 4.57: `make test-all` installs it"
)
ODD_TEXTS = (
    *(
        "",
        " ",
        "\n\n  the cat\t",
        "the  cat\r\nsat",
        "Zażółć gęślą jaźń",
        "e\u0301 \u00e9 \ufb01 \u2126",
        "a\u0000b",
    ),
    *(
        "\U0001f469\u200d\U0001f52c!",
        "猫 坐 在",
        "<|end_of_text|> the<|pad|>",
        "<|eot_id|>cat<|im_end|>",
        "x" * 300,
    ),
    *("I'm DON'T 12345 3.14", "\u200b\ufeff the", "<unk> [UNK] <s>", "the cat sat on the mat."),
)
CHAT = [{"role": "user", "content": "the cat?\n"}, {"role": "assistant", "content": " the dog"}]
READER = """
    import json, sys
    sys.modules["rung"] = None  # to import it is an error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
    texts, chat = json.loads(sys.argv[2]), json.loads(sys.argv[3])
    seen = {"version": __version__}
    for folder in sys.argv[4:]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(text).input_ids for text in texts]
        seen[folder] = found = {
            "ids": ids,
            "decoded": [tokenizer.decode(row) for row in ids],
            "plain": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
            "special": sorted(tokenizer.all_special_ids),
            "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
                     tokenizer.padding_side],
            "size": len(tokenizer),
        }
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            found["chat"] = tokenizer(text, add_special_tokens=False).input_ids
        if json.load(open(folder + "/config.json"))["model_type"].startswith("rung-"):
            continue
        model = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32}).eval()
        batch = tokenizer(["the cat", "a dog sat on the"], padding=True, return_tensors="pt")
        found["written"] = model.generate(**batch, do_sample=False).tolist()
        found["logits"] = model(batch.input_ids).logits.detach()
        found["context"] = model.config.max_position_embeddings
    torch.save(seen, sys.argv[1])
"""


@pytest.fixture
def read(tmp_path):
    """A function that has an interpreter read folders without rung, and gives what it found."""

    def run(python, folders):
        arguments = [
            str(tmp_path / "seen.pt"),
            json.dumps(ODD_TEXTS),
            json.dumps(CHAT),
            *map(str, folders),
        ]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        program = [str(python), "-c", textwrap.dedent(READER), *arguments]
        ran = subprocess.run(
            program, capture_output=True, text=True, check=False, env=clean, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr
        return torch.load(tmp_path / "seen.pt", weights_only=True)

    return run


@pytest.fixture
def make_folders(make_tiny, tokenizer, tmp_path, monkeypatch):
    """A function that makes runs, and what is exported of them: each rung, each kind of tokenizer,
    chats.
    """
    monkeypatch.setattr(rung.export.hf, "SHARD_SIZE", "30KB")

    def save(name, model, its_tokenizer=tokenizer):
        runs.save_model(runs.make_folder(tmp_path / name), model, its_tokenizer)
        runs.write_record(tmp_path / name, {"rung": name})
        export(str(tmp_path / name), "hf", tmp_path / f"{name}-hf")
        return [tmp_path / name, tmp_path / f"{name}-hf"]

    def make():
        half = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
        scaled = {
            "rope_parameters": rope_parameters(8.0) | {"original_max_position_embeddings": 16}
        }
        found = save("untied", make_tiny("gpt2", tie_word_embeddings=False)) + save(
            "gpt2", make_tiny("gpt2")
        )
        found += save("turned", make_tiny("llama3", **half)) + save(
            "scaled", make_tiny("llama3", **scaled)
        )
        found += save("bf16", make_tiny("llama3", tie_word_embeddings=False).bfloat16())
        for name in ("rnn", "ngram"):
            found += save(name, make_tiny(name))
        for kind in BUILDERS:
            its = build_tokenizer(kind, SENTENCES * 20, 300)
            found += save(f"kind-{kind}", make_tiny("gpt2", vocab_size=300), its)
        for name, form in (("gpt2", CHATML_FORMAT), ("llama3", LLAMA3_FORMAT)):
            model, its = make_tiny(name), build_tokenizer("bpe", SENTENCES * 20, 300)
            its.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
            set_up_chat_format(model, its, form)
            found += save(f"chat-{name}", model, its)
        for name in ("gpt2", "llama3"):
            found += save(
                f"adapted-{name}", make_adapted(make_tiny(name), tmp_path / f"adapted-{name}")
            )
        export(str(tmp_path / "turned"), "meta", tmp_path / "meta")
        export(str(tmp_path / "meta"), "hf", tmp_path / "from-meta")
        return [*found, tmp_path / "from-meta"]

    return make


def make_adapted(model, folder):
    """The model with a change of low rank merged into it; the change alone lies in the folder,
    too.
    """
    pytest.importorskip("peft", reason="PEFT is not installed: pip install 'rung[lora]'")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapter = LoraAdapter(model, 2)
    generator = torch.Generator().manual_seed(3)
    for name, weight in adapter.peft_model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3, generator=generator)
    merged = adapter.merge()
    adapter.save(runs.make_folder(folder))
    assert any(
        not torch.equal(before[name], weight) for name, weight in merged.state_dict().items()
    )
    return merged


def assert_same_reading(ours, theirs):
    for key, value in ours.items():
        if key == "logits":
            torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-5)
        else:
            assert theirs[key] == value, key


GGUF_READER = """
    import sys
    sys.modules["rung"] = None  # to import it is an error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    seen = {}
    for file in sys.argv[2:]:
        folder, name = file.rsplit("/", 1)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        settings = {"gguf_file": name, "dtype": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
        ids = tokenizer("the cat sat on the mat").input_ids
        seen[name] = {"ids": ids, "logits": model(torch.tensor([ids])).logits.detach()}
    torch.save(seen, sys.argv[1])
"""


@pytest.mark.slow
def test_the_newest_transformers_reads_our_gguf(make_tiny, tokenizer, tmp_path):
    """Of Llama alone: of a GPT-2's file transformers reads neither its window nor its inner width,
    which are not those of every GPT-2, and of a scaled rotation it reads no scales.
    """
    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'rung[export]'")
    half = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    models = {
        "tied": make_tiny("llama3"),
        "turned": make_tiny("llama3", tie_word_embeddings=False, **half),
    }
    models["adapted"] = make_adapted(make_tiny("llama3"), tmp_path / "adapted")
    for name, model in models.items():
        runs.save_model(
            runs.make_folder(tmp_path / name),
            shake(model) if name != "adapted" else model,
            tokenizer,
        )
        runs.write_record(tmp_path / name, {"rung": "llama3"})
        export(str(tmp_path / name), "gguf", tmp_path / f"{name}.gguf", type="f32")
    files = [str(tmp_path / f"{name}.gguf") for name in models]
    program = [
        sys.executable,
        "-c",
        textwrap.dedent(GGUF_READER),
        str(tmp_path / "seen.pt"),
        *files,
    ]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        program, capture_output=True, text=True, check=False, env=clean, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)
    for name in models:
        model, its = load(tmp_path / name)
        found = seen[f"{name}.gguf"]
        assert found["ids"] == its("the cat sat on the mat").input_ids
        logits = model(torch.tensor([found["ids"]])).logits.detach()
        torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@needs_oldest
def test_oldest_and_newest_transformers_read_the_same(make_folders, read):
    folders = make_folders()
    oldest, newest = read(OLDEST, folders), read(sys.executable, folders)
    assert oldest["version"].startswith("4.57") and newest["version"] >= "5"
    for folder in map(str, folders):
        assert_same_reading(newest[folder], oldest[folder])
        assert ("logits" in newest[folder]) == ("rnn" not in folder and "ngram" not in folder)
        model, tokenizer = load(folder)
        assert [tokenizer(text).input_ids for text in ODD_TEXTS] == oldest[folder]["ids"]
        if "logits" in newest[folder]:
            batch = tokenizer(["the cat", "a dog sat on the"], padding=True, return_tensors="pt")
            ours = model.float().generate(**batch, do_sample=False).tolist()
            assert ours == oldest[folder]["written"]
            logits = model(batch.input_ids).logits.detach()
            torch.testing.assert_close(oldest[folder]["logits"], logits, rtol=1e-5, atol=1e-5)
