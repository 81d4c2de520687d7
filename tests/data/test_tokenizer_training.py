"""Tokenizers trained on text: what becomes a token, how many, and in what time."""

import json
import random
import time

import pytest

from rung.data.tokenizer import (
    encode_documents,
    encode_ordinary,
    fingerprint_tokenizer,
    lossy_features,
)
from rung.data.tokenizer_training import (
    BOS,
    EOS,
    MAX_WORD_LENGTH,
    PAD,
    UNKNOWN,
    build_tokenizer,
    suggest_vocab_size,
)
from rung.errors import TokenizerError
from tests.conftest import SENTENCES
from tests.data.conftest import GPT2_END, KINDS, ids_of, train_by_library


def test_the_book_s_words():
    tokenizer = build_tokenizer("word", ["the café sat , 12 mats", "cafe the 345!"])
    pieces = encode_ordinary(tokenizer, ["The CAFÉ: cafe\u0301 12a\n345 mats!?"])[0].tokens
    assert pieces == ["the", "cafe", UNKNOWN, "cafe", "12", UNKNOWN, "345", "mats", UNKNOWN]


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [("word-split", ["a", "cat,", "é", "."]), ("whitespace", ["A", "Cat,", "É", "."])],
)
def test_words_between_white_space(kind, pieces):
    tokenizer = build_tokenizer(kind, ["A Cat, É\n."])
    assert encode_ordinary(tokenizer, [" A\tCat,  É\r\n."])[0].tokens == pieces


def test_only_ascii_white_space_parts_words_as_for_kenlm():
    text = "".join(
        f"a{space}b"
        for space in "\t\n\x0b\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"
    )
    tokenizer = build_tokenizer("whitespace", [text])
    expected = [
        word.decode() for word in text.encode().split()
    ]  # of bytes: ASCII's, as in KenLM's Python module
    assert encode_ordinary(tokenizer, [text])[0].tokens == expected
    lower = build_tokenizer("word-split", ["a b"])
    assert encode_ordinary(lower, ["A\xa0B\u3000a"])[0].tokens == ["a", "b", "a"]


MARKS = ["<unk>", "<s>", "</s>", "<pad>", "[UNK]", BOS, EOS, PAD, UNKNOWN, GPT2_END]


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_special_tokens_are_words_like_any_other(kind):
    """In training text and in what is encoded: all ids are in the vocabulary, and no text becomes a
    special token.
    """
    text = " ".join(["one", *MARKS, "two"] * 3)
    tokenizer = build_tokenizer(kind, [text, *SENTENCES])
    special = set(tokenizer.all_special_ids)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert not special & set(ids_of(tokenizer, text))
    (_, *encoded, _), (_, *name, _) = encode_documents([text, MARKS[0]], tokenizer)
    assert encoded == ids_of(tokenizer, text)
    assert name == ids_of(tokenizer, MARKS[0])
    if not lossy_features(tokenizer):
        assert tokenizer.decode(encoded) == text


@pytest.mark.parametrize("mark", ["<unk>", "<s>", "</s>", "<pad>"])
def test_a_mark_of_tokenized_text_is_a_word_as_it_would_be_by_another_name(mark):
    texts = [f"a {mark} sat", f"{mark} and {mark} ran"]
    for kind in ("whitespace", "word-split"):
        tokenizer, other = (
            build_tokenizer(kind, [t.replace(mark, name) for t in texts]) for name in (mark, "unkw")
        )
        assert len(tokenizer) == len(other)
        for text in texts:
            assert (
                len(ids_of(tokenizer, text))
                == len(ids_of(other, text.replace(mark, "unkw")))
                == len(text.split())
            )


def learn(texts):
    return build_tokenizer("bpe", texts, 320).backend_tokenizer.to_str()


def test_long_words_are_cut_for_the_trainer_alone(caplog):
    letters = "".join(random.Random(1).choices("ACGT", k=4 * MAX_WORD_LENGTH))
    tokenizer = build_tokenizer("bpe", [f"a word, {letters} and more", " " * 9999], 320)
    assert "2 words of more than 1,024 characters without a break" in caplog.text
    text = letters * 3
    assert tokenizer.decode(ids_of(tokenizer, text)) == text
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    assert saved["pre_tokenizer"]["type"] == "ByteLevel"  # nothing else is cut


def test_ordinary_text_is_learned_from_as_it_is(prose, caplog):
    """The trainer is given the text itself, so that no token changes: also of what has few
    breaks.
    """
    for text in (
        prose,
        "=" * MAX_WORD_LENGTH,
        "中文，" * 999,
        "x" * MAX_WORD_LENGTH + " y",
        "a1" * 2000,
        "\n \t" * 300,
    ):
        library = train_by_library("bpe", [text], 320)
        assert json.loads(learn([text]))["model"] == json.loads(library.to_str())["model"]
    assert not caplog.text


def test_the_trainer_takes_time_by_the_letter():
    """Twice the letters in one word take about twice as long; without a cut it is four times."""

    def take(size):
        text = "".join(random.Random(1).choices("ACGT", k=size))
        start = time.process_time()
        learn([text])
        return time.process_time() - start

    assert min(take(80_000) for _ in range(3)) < 8 * min(take(20_000) for _ in range(3))


def test_a_character_is_a_token():
    text = "a\n\n\re\u0301é\t😀 𝔘\u200d"
    tokenizer = build_tokenizer("char", [text])
    encoding = encode_ordinary(tokenizer, [text])[0]
    assert encoding.tokens == list(text)
    assert tokenizer.decode(encoding.ids) == text
    assert len(tokenizer) == len(set(text)) + 4
    assert encode_ordinary(tokenizer, ["ab"])[0].tokens == ["a", UNKNOWN]


def test_the_vocabulary_is_of_the_size_asked_for(prose):
    assert len(build_tokenizer("bpe", [prose], 400)) == 400
    for kind in KINDS[1:]:
        assert len(build_tokenizer(kind, [prose], 30)) == 30
    everything = build_tokenizer("whitespace", [prose])
    assert len(everything) == len(set(prose.split())) + 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_is_too_small(kind):
    smallest = 259 if kind == "bpe" else 5
    for size in (-1, 0, smallest - 1):
        with pytest.raises(
            TokenizerError,
            match=f"tokenizer.vocab_size is {size}: {kind} needs at least {smallest}",
        ):
            build_tokenizer(kind, SENTENCES, size)
    assert len(build_tokenizer(kind, SENTENCES, smallest)) == smallest


def test_byte_pairs_come_from_the_given_text_alone():
    tokenizer = build_tokenizer("bpe", ["zqzq" * 50], 262)
    learned = [tokenizer.decode([i]) for i in range(259, len(tokenizer))]
    assert learned[0] == "zq"
    assert set("".join(learned)) == {"z", "q"}
    again = build_tokenizer("bpe", ["zqzq" * 50], 262)
    assert (
        fingerprint_tokenizer(again)
        == fingerprint_tokenizer(tokenizer)
        != fingerprint_tokenizer(build_tokenizer("bpe", ["qzqz" * 50], 262))
    )


def test_the_vocabulary_grows_with_the_text():
    assert suggest_vocab_size(2_000_000) == 1024
    assert suggest_vocab_size(1_000_000) == 1024
    assert suggest_vocab_size(30_000_000) == 4096
    assert suggest_vocab_size(0) == 320
    assert suggest_vocab_size(10**12) == 16_384
