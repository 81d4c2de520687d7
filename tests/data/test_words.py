"""Words: where a text is cut, and that ids by words are those of the whole text."""

import itertools
import json

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers

from rung.data import words as words_module
from rung.data.tokenizer import encode_batches, encode_ordinary
from rung.data.tokenizer_training import (
    BOS,
    EOS,
    UNKNOWN,
    build_tokenizer,
    make_untrained,
    strip_plain_word,
)
from rung.data.words import WIDE_SPACES, WordIds, count_words, split_words, splits_at_white_space
from rung.errors import TokenizerError
from tests.conftest import SENTENCES, examples
from tests.data.conftest import HARD, KINDS, train_by_library

# All that Python, Unicode or the tokenizers call white space, and what stands beside it in text.
SPACES = "".join(c for c in map(chr, range(0x110000)) if c.isspace()) + WIDE_SPACES
ODD = st.lists(
    st.sampled_from([*SPACES, " ", " ", "\n", "'s", "e", "é", "e\u0301", "\u0301", "Σ", "ς", "İ"])
    | st.sampled_from(
        ["12", "<", BOS, EOS, UNKNOWN, "”", "…", "中", "😀", "\u200d", "\x7f", "\x1c"]
    )
    | st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=24,
).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    return build_tokenizer(request.param, [*SENTENCES, HARD, SPACES])


@settings(max_examples=examples(150), deadline=None)
@given(texts=st.lists(ODD, max_size=4))
def test_ids_by_words_are_those_of_the_text(trained, texts):
    ((ids, lengths, _),) = encode_batches([(texts, None)], trained)
    bos, eos = trained.bos_token_id, trained.eos_token_id
    # The library's own ids, of each text as a whole.
    rows = [[bos, *encoding.ids, eos] for encoding in encode_ordinary(trained, texts)]
    assert ids.tolist() == [*itertools.chain(*rows)]
    assert lengths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_all_white_space_between_all_kinds_of_characters(kind):
    ends = ["a", "é", "中", "😀", "1", "'s", ".", "”", "\u0301", *SPACES]
    texts = ["".join(parts) for parts in itertools.product(ends, SPACES, [" ", "\n"], ["b", "1"])]
    tokenizer = build_tokenizer(kind, [*SENTENCES, *ends])
    ((ids, _, _),) = encode_batches([(texts, None)], tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    expected = [[bos, *encoding.ids, eos] for encoding in encode_ordinary(tokenizer, texts)]
    assert ids.tolist() == [*itertools.chain(*expected)]


def test_names_of_special_tokens_are_not_plain_words():
    assert [*map(strip_plain_word, (f" {BOS}", f"{UNKNOWN}\n", " \n", "a b"))] == [""] * 4
    assert [*map(strip_plain_word, ("\n\ta", "\xa0b ", f"{EOS}x"))] == ["a", "\xa0b", f"{EOS}x"]


@settings(max_examples=examples(60), deadline=None)
@given(texts=st.lists(ODD, max_size=6), size=st.none() | st.integers(259, 300))
@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_trained_as_the_library_trains_it(kind, texts, size):
    trained = build_tokenizer(kind, texts, size).backend_tokenizer
    trained.post_processor = None
    expected = train_by_library(kind, texts, size)
    expected.post_processor = None
    assert trained.to_str() == expected.to_str()


@settings(max_examples=examples(150), deadline=None)
@given(
    texts=st.lists(st.text(alphabet="aab c", max_size=60), max_size=6), size=st.integers(259, 330)
)
def test_byte_pairs_of_few_letters_are_the_library_s(texts, size):
    """Few letters: pairs that overlap, that are equally frequent, that make one token twice."""
    trained = build_tokenizer("bpe", texts, size).backend_tokenizer
    trained.post_processor = None
    assert trained.to_str() == train_by_library("bpe", texts, size).to_str()


@settings(max_examples=examples(150), deadline=None)
@given(texts=st.lists(ODD, max_size=5))
def test_words_are_the_text(texts):
    words, first = split_words(texts)
    words = words.to_pylist()
    pairs = itertools.pairwise(first.tolist())
    assert ["".join(words[begin:end]) for begin, end in pairs] == texts
    assert all(words)
    found, counts = count_words(texts)
    assert dict(zip(found, counts.tolist(), strict=True)) == {w: words.count(w) for w in words}
    whole, first = split_words(texts, at_white_space=False)
    assert whole.to_pylist() == [text for text in texts if text]


@settings(max_examples=examples(150), deadline=None)
@given(batches=st.lists(st.lists(ODD, max_size=4), max_size=3), at_white_space=st.booleans())
def test_c_numbers_words_as_arrow_does(batches, at_white_space):
    if (library := words_module._compile()) is None:
        pytest.skip("there is no compiler")
    tables = words_module.ArrowWords(), words_module.CompiledWords(library)
    for texts in batches:
        expected, found = (t.number(texts, at_white_space=at_white_space) for t in tables)
        assert [part.tolist() for part in found[:2]] == [part.tolist() for part in expected[:2]]
        assert found[2] == expected[2]
        if found[0].size:
            ends = numpy.cumsum([0, *(number % 3 for number in range(found[0].max() + 1))])
            row = *found[:2], numpy.arange(100, 100 + ends[-1], dtype=numpy.uint32), ends
            with pytest.MonkeyPatch.context() as changed:
                ids, lengths = words_module._list_ids(*row)
                changed.setattr(words_module, "_compile", lambda: None)
                expected = words_module._list_ids(*row)
            assert (ids.tolist(), lengths.tolist()) == tuple(part.tolist() for part in expected)


def test_many_words_are_numbered():
    """More than a table has room for at first, of words and of bytes."""
    words = [f"{number}-" * (1 + number % 40) for number in range(20_000)]
    table = words_module._make_table()
    numbers, first, new = table.number(words)
    assert (new, numbers.tolist(), first[-1]) == (words, [*range(20_000)], 20_000)
    numbers, _, new = table.number(words[::-1])
    assert (new, numbers.tolist()) == ([], [*range(20_000)][::-1])


def test_where_a_text_is_cut():
    words, first = split_words(["a bc\n d  e ", "", " f", "é\xa0 g” h\x1c i"])
    expected = ["a", " bc", "\n d", "  e", " ", " f", "é\xa0 g”", " h\x1c i"]
    assert (words.to_pylist(), first.tolist()) == (expected, [0, 5, 5, 6, 8])


def test_only_proven_tokenizers_are_cut_at_white_space():
    def is_cut(tokenizer):
        proven = [json.loads(make_untrained(kind).to_str()) for kind in KINDS]
        return splits_at_white_space(json.loads(tokenizer.to_str()), proven)

    for kind in KINDS:
        assert is_cut(build_tokenizer(kind, SENTENCES).backend_tokenizer)
    other = make_untrained("bpe")
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not is_cut(other)
    other = build_tokenizer("bpe", SENTENCES).backend_tokenizer
    other.add_tokens([AddedToken("two words")])
    assert not is_cut(other)


def test_ids_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr("rung.data.words.KEPT_BYTES", 10)
    encoded = []

    def encode(words):
        encoded.extend(words)
        return [[len(word)] * len(word) for word in words]

    ids = WordIds(encode)
    for _ in range(3):
        row, lengths = ids.encode_texts(["aaaa bbb aaaa", "", "cc"], at_white_space=True)
        assert row.tolist() == [4] * 4 + [4] * 4 + [5] * 5 + [2] * 2
        assert lengths.tolist() == [13, 0, 2]
    assert len(encoded) == 3 * 4  # too many to be kept for the next texts
    row, lengths = ids.encode_texts(["", ""], at_white_space=True)
    assert (len(row), lengths.tolist()) == (0, [0, 0])


def test_a_text_that_is_no_unicode_is_one_clear_line():
    tokenizer = build_tokenizer("bpe", SENTENCES)
    with pytest.raises(TokenizerError, match="not Unicode"):
        list(encode_batches([(["a\ud800"], None)], tokenizer))
