"""Generation: bounds, reproducibility, streaming."""

import numpy
import pytest
from conftest import SENTENCES, TINY

from rung.errors import RecipeError
from rung.generate import Sampling, generate
from rung.models import LADDER, make_config
from rung.tokenizer import build_tokenizer, encode_documents


@pytest.mark.parametrize("name", list(TINY))
def test_streamed_text_is_the_text(name, make_tiny, tokenizer):
    pieces = []
    made = generate(make_tiny(name), tokenizer, "the cat", Sampling(max_new_tokens=12), pieces.append)
    assert "".join(pieces) == made.text
    assert 1 <= made.tokens <= 12
    assert made.tokens_per_second > 0


def test_the_seed_decides(make_tiny, tokenizer):
    model = make_tiny("llama3")
    texts = [generate(model, tokenizer, "the", Sampling(seed=seed, temperature=2.0)).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_longer_than_the_window_leaves_room(make_tiny, tokenizer):
    model = make_tiny("gpt2", max_position_embeddings=16)
    made = generate(model, tokenizer, "the cat sat on the mat " * 10, Sampling(max_new_tokens=100, temperature=0))
    assert 1 <= made.tokens <= 8


def test_words_do_not_run_together(make_tiny):
    """A tokenizer of words keeps no white space: the first new word stands apart from the prompt."""
    words = build_tokenizer("whitespace", SENTENCES)
    documents = list(encode_documents(SENTENCES, words))
    starts = numpy.cumsum([0] + [len(row) for row in documents[:-1]])
    model = LADDER["bigram"].model.fit(make_config("bigram", words, {}), numpy.concatenate(documents), starts).eval()
    greedy = Sampling(temperature=0, max_new_tokens=3)
    for prompt, begins in (("the cat sat", " on"), ("the cat sat ", "on")):
        pieces = []
        made = generate(model, words, prompt, greedy, pieces.append)
        assert made.text.startswith(begins)
        assert "".join(pieces) == made.text


def test_an_empty_prompt_starts_a_document(make_tiny, tokenizer):
    assert generate(make_tiny("ngram"), tokenizer, "", Sampling(temperature=0, max_new_tokens=5)).tokens >= 1


def test_beams_find_a_likelier_text_than_greed(make_tiny, tokenizer):
    model = make_tiny("ngram")
    assert generate(model, tokenizer, "a", Sampling(num_beams=4, temperature=0, max_new_tokens=8)).text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be 1 or more"),
        ({"temperature": -1.0}, "temperature is -1.0: it must be 0 or more"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, r"top_p is 0.0: it must be in \(0, 1\]"),
        ({"num_beams": 0}, "num_beams is 0"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        Sampling(**setting)
