"""Tokenizers from a folder or the Hub: the same as when they were saved, or one clear line."""

import json

import pytest
from transformers import AutoTokenizer

from rung.data.tokenizer import (
    encode_documents,
    fingerprint_tokenizer,
    lossy_features,
)
from rung.data.tokenizer_loading import PUBLISHED_TOKENIZERS, load_tokenizer
from rung.data.tokenizer_training import (
    BOS,
    EOS,
    build_tokenizer,
)
from rung.errors import TokenizerError
from tests.conftest import SENTENCES
from tests.data.conftest import GPT2_END, HARD, ids_of, save_gpt2, save_llama3, train_bytes, wrap


def test_saved_and_loaded_it_is_the_same(any_tokenizer, tmp_path):
    any_tokenizer.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        for text in (*SENTENCES, HARD, ""):
            assert loaded(text).input_ids == any_tokenizer(text).input_ids
            assert ids_of(loaded, text) == ids_of(any_tokenizer, text)
        assert fingerprint_tokenizer(loaded) == fingerprint_tokenizer(any_tokenizer)
        assert lossy_features(loaded) == lossy_features(any_tokenizer)
        assert len(loaded) == len(any_tokenizer)
        for name in ("bos_token", "eos_token", "pad_token", "unk_token", "padding_side"):
            assert getattr(loaded, name) == getattr(any_tokenizer, name)
        assert loaded.padding_side == "left"


def test_chance_is_switched_off(tmp_path, caplog):
    tokenizer = wrap(train_bytes(), bos_token=GPT2_END)
    expected = ids_of(tokenizer, HARD)
    tokenizer.backend_tokenizer.model.dropout = 0.5
    assert all(ids_of(tokenizer, HARD) == expected for _ in range(5))
    assert all(
        [ids[1:-1] for ids in encode_documents([HARD], tokenizer)] == [expected] for _ in range(5)
    )
    assert tokenizer.backend_tokenizer.model.dropout == 0.5
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.backend_tokenizer.model.dropout is None
    assert "would cut the same text differently each time" in caplog.text


def test_published_tokenizers_get_the_marks_they_lack(tmp_path):
    for name, save, marks in (
        ("gpt2", save_gpt2, [GPT2_END] * 3),
        ("llama3", save_llama3, [BOS, EOS, EOS]),
    ):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
        tokenizer = load_tokenizer(str(tmp_path / name))
        assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token] == marks
        assert tokenizer.padding_side == "left"
        assert len(tokenizer) <= 300
        assert lossy_features(tokenizer) == ()
        text = "do n't ! <|end_of_text|> ? <|endoftext|>"
        assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_a_tokenizer_that_cannot_be_used(tmp_path):
    wrap(train_bytes(), eos_token=None).save_pretrained(tmp_path / "endless")
    wrap(train_bytes()).save_pretrained(tmp_path / "own")
    facts = json.loads((tmp_path / "own/tokenizer_config.json").read_text())
    facts |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (tmp_path / "own/tokenizer_config.json").write_text(json.dumps(facts))
    (tmp_path / "own/own.py").write_text("raise SystemExit")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/tokenizer.json").write_text("{")
    (tmp_path / "file.json").write_text("{}")
    for name, message in {
        str(tmp_path / "endless"): "has no end-of-text token",
        str(tmp_path / "own"): "run only where you trust it and say so: --trust-remote-code",
        str(
            tmp_path / "empty"
        ): r"could not be loaded \(it has no tokenizer.json\); give a folder that holds",
        str(tmp_path / "damaged"): "damaged/tokenizer.json is damaged: it is no JSON",
        str(tmp_path / "file.json"): "could not be loaded",
        str(tmp_path / "missing"): "no such folder: ",
        "../missing/too": "no such folder: ",
        "gtp2": "unknown tokenizer 'gtp2': did you mean 'gpt2'?",
        "sentencepiece": "unknown tokenizer 'sentencepiece': choose from bpe, .* or give a folder",
        "bpe": "'bpe' is a kind of tokenizer to train, not one to load",
        "org/missing": "the tokenizer 'org/missing' could not be loaded .* train one: --tokenizer "
        "bpe",
        "llama3": f"the tokenizer '{PUBLISHED_TOKENIZERS['llama3']}' could not be loaded",
    }.items():
        with pytest.raises(TokenizerError, match=message) as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(TokenizerError, match="unknown tokenizer 'wrod': did you mean 'word'?"):
        build_tokenizer("wrod", SENTENCES)


def test_an_unreachable_hub_is_one_clear_line_soon(without_hub):
    _, line = without_hub
    assert line.startswith(
        "TokenizerError(\"the tokenizer 'openai-community/gpt2' could not be loaded"
    )
