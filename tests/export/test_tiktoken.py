"""Llama 3's tokenizer, from Meta's file and back to it."""

from pathlib import Path

import pytest
import transformers

from rung.export.tiktoken import LLAMA3, LLAMA31, list_special_tokens, read_tiktoken, write_tiktoken

NASTY = (
    "Hello, naïve café! WE'LL don't I'Ve\n\n\n\t tabs\u00a0and\u3000spaces   \r\n 1234567 ½²٣٤٥ "
    "x=y;//z\n"
    "你好，世界。日本語のテキスト 한국어 مرحبا بالعالم עברית "
    "हिन्दी बिल्ली ไทย Ελληνικά Русский ქართული\n"
    "🤖👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u202eright\u202c \ufeff\u0000 antidisestablishmentarianism "
    "aaaaaaaaaaaaaaaa      end "
)


@pytest.mark.parametrize("size", [2_000, pytest.param(128_000, marks=pytest.mark.slow)])
def test_llama_3s_tokenizer_is_tiktokens(size, tmp_path):
    """The published one, and one of its first byte pairs alone."""
    llama_models = pytest.importorskip(
        "llama_models", reason="llama-models is not installed: pip install 'rung[peers]'"
    )
    from llama_models.llama3.tokenizer import Tokenizer

    published = Path(next(iter(llama_models.__path__))) / "llama3/tokenizer.model"
    lines = published.read_bytes().splitlines(keepends=True)
    assert len(lines) == 128_000
    path = tmp_path / "published.model"
    path.write_bytes(b"".join(lines[:size]))
    reference, ours = Tokenizer(path), read_tiktoken(path)
    assert ours(NASTY).input_ids == reference.encode(NASTY, bos=True, eos=False)
    common = [
        token
        for token, number in reference.special_tokens.items()
        if ours.convert_tokens_to_ids(token) == number
    ]
    assert {
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
        "<|finetune_right_pad_id|>",
    } < {*common}
    marked = NASTY + "x".join(common[:9]) + NASTY
    wanted = reference.encode(marked, bos=False, eos=False, allowed_special="all")
    assert ours(marked, add_special_tokens=False).input_ids == wanted
    assert ours.decode(wanted) == marked
    ours.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(marked, add_special_tokens=False).input_ids == wanted
    write_tiktoken(again, tmp_path / "tokenizer.model")
    assert (tmp_path / "tokenizer.model").read_bytes() == path.read_bytes()


def test_special_tokens_have_the_published_places():
    first, second = (list_special_tokens(names) for names in (LLAMA3, LLAMA31))
    assert len(first) == len(set(first)) == len(second) == len(set(second)) == 256
    assert first[4:11] == [
        "<|reserved_special_token_2|>",
        "<|reserved_special_token_3|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
    ]
    assert (first[-1], second[-1]) == (
        "<|reserved_special_token_250|>",
        "<|reserved_special_token_247|>",
    )
    assert second[4:6] == ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"]
