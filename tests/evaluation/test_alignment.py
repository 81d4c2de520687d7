"""Text that a tokenizer drops, replaces or does not know is found and charged."""

import math

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rung.data.tokenizer import lossy_features
from rung.evaluation.alignment import Aligner
from rung.evaluation.documents import spelling_cost
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from tests.conftest import SENTENCES
from tests.evaluation.conftest import LONG, count, wrap


def byte_pairs(left_out="", affixes=None, **parts):
    """Byte pairs of others: without some bytes, with affixes, a normalizer or a pre-tokenizer of
    its own.
    """
    letters = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in left_out]
    backend = Tokenizer(
        models.BPE({letter: i for i, letter in enumerate(letters)}, [], **affixes or {})
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    return wrap(backend)


def score_by(tokenizer, text):
    """The score of a text by counts of the sentences."""
    return score_documents(count("bigram", tokenizer, SENTENCES), tokenizer, [text])


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
LEVEL = pre_tokenizers.Sequence([pre_tokenizers.Split(",", "removed"), BYTES])
DROPS = {  # a tokenizer, a text, what of it is dropped, and what is lost
    # The library misplaces what stands behind a dropped byte of a word: the word's rest is charged
    # with it.
    "bytes": ({"left_out": "ac"}, "the cat sat", ["cat", "at"], {"dropped text"}),
    "bytes of characters": ({"left_out": "æ"}, "the 日日 sat", ["日日"], {"dropped text"}),
    "ends of words": (
        {"affixes": {"end_of_word_suffix": "@"}},
        "the cat",
        ["e", "t"],
        {"dropped text"},
    ),
    "insides of words": (
        {"affixes": {"continuing_subword_prefix": "@"}},
        "a cat",
        ["cat"],
        {"dropped text"},
    ),
    "separators": ({"pre_tokenizer": LEVEL}, "the,cat,,sat", [",", ",,"], {"dropped text"}),
    "replaced": (
        {"normalizer": normalizers.Replace("cat", "dog")},
        "the cat",
        ["cat"],
        {"dropped text"},
    ),
    "nothing": ({"normalizer": normalizers.Replace("cat", "dog")}, "the mat", [], set()),
    "stripped": ({"normalizer": normalizers.Strip()}, "  the mat ", [], {"white space"}),
    "folded": ({"normalizer": normalizers.Lowercase()}, "The mat", [], {"case"}),
    "form": ({"normalizer": normalizers.NFKC()}, "the ﬁsh", [], {"Unicode form"}),
}


def test_the_name_of_a_byte_in_a_text_is_charged():
    spelt = [("<unk>", -9.0), *((f"<0x{byte:02X}>", -1.0) for byte in range(256))]
    backend = Tokenizer(models.Unigram(spelt, unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = wrap(backend)
    assert lossy_features(tokenizer) == ()
    assert [
        aligned.dropped for _, aligned in Aligner(tokenizer).align(["the A", "the <0x41>"])
    ] == [
        [],
        [(4, 10)],
    ]


@pytest.mark.parametrize("case", list(DROPS))
def test_text_that_a_tokenizer_drops_is_charged_and_named(case):
    settings, text, dropped, lost = DROPS[case]
    tokenizer = byte_pairs(**settings)
    model = count("bigram", tokenizer, SENTENCES)
    score = score_documents(model, tokenizer, [text])
    assert score.dropped_nats == pytest.approx(sum(map(spelling_cost, dropped)))
    assert score.dropped_bytes == len("".join(dropped).encode())
    assert lost <= set(score.lost)
    assert ("dropped text" in score.lost) == bool(dropped)
    pieces = score_text(model, tokenizer, text)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.bits for piece in pieces) * math.log(2) == pytest.approx(score.nats, rel=1e-5)


def test_an_unknown_word_is_one_by_whatever_name(tmp_path):
    """The tokenizer's settings need not say which token stands for unknown words: its model
    does.
    """
    words = {
        "<?>": 0,
        "<s>": 1,
        "</s>": 2,
        **{word: 3 + i for i, word in enumerate(sorted({*LONG.split()}))},
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<?>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain, named = wrap(backend), wrap(backend)
    named.unk_token = "<?>"
    scores = [score_by(tokenizer, "the zebra sat") for tokenizer in (plain, named)]
    assert scores[0].unknown_words == scores[1].unknown_words == 1
    assert scores[0].nats == scores[1].nats > spelling_cost("zebra")


def test_an_added_token_that_takes_white_space_says_so():
    tokenizer = byte_pairs()
    tokenizer.add_tokens([AddedToken("heron", lstrip=True, rstrip=True)])
    assert "white space" in score_by(tokenizer, "the   heron   sat").lost


def test_a_lossless_tokenizer_has_nothing_unknown(make_tiny, tokenizer):
    score = score_documents(make_tiny("bigram"), tokenizer, ["日本 ∑ <|end_of_text|> <unk>"])
    assert score.unknown_words == 0
    assert score.lost == []
