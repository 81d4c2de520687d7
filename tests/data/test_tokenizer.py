"""Text to ids and back: what is lossless comes back, what is lost is named, no text is taken for a
mark.
"""

import itertools
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
)

from rung.data.tokenizer import (
    encode_batches,
    encode_documents,
    encode_ordinary,
    find_unk_token_id,
    fingerprint_tokenizer,
    lossy_features,
    required_vocab_size,
)
from rung.data.tokenizer_loading import load_tokenizer
from rung.data.tokenizer_training import (
    BOS,
    EOS,
    build_tokenizer,
)
from rung.errors import CorpusError, TokenizerError
from tests.conftest import SENTENCES, examples
from tests.data.conftest import GPT2_END, HARD, TEXTS, ids_of, train_bytes, wrap


def special_ids(tokenizer):
    return {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}


@settings(max_examples=examples(60), deadline=None)
@given(text=TEXTS)
def test_what_is_lossless_comes_back(any_tokenizer, text):
    encoding = encode_ordinary(any_tokenizer, [text])[0]
    assert not special_ids(any_tokenizer) & set(encoding.ids)
    if not lossy_features(any_tokenizer):
        assert any_tokenizer.decode(encoding.ids) == text
    end = 0
    for start, stop in encoding.offsets:  # they index the text as it was given
        assert 0 <= start <= stop <= len(text)
        assert (
            start <= end
            or not text[end:start].strip()
            or "accents" in lossy_features(any_tokenizer)
        )
        end = max(end, stop)


@settings(max_examples=examples(30), deadline=None)
@given(documents=st.lists(TEXTS, max_size=5))
def test_a_document_begins_and_ends_and_holds_no_mark(any_tokenizer, documents):
    encoded = list(encode_documents(documents, any_tokenizer))
    assert len(encoded) == len(documents)
    for ids, text in zip(encoded, documents, strict=True):
        assert ids == [
            any_tokenizer.bos_token_id,
            *ids_of(any_tokenizer, text),
            any_tokenizer.eos_token_id,
        ]
        assert not special_ids(any_tokenizer) & set(ids[1:-1])


def test_documents_beyond_one_batch_stay_in_order(tokenizer):
    documents = [str(i) for i in range(600)]
    decoded = [tokenizer.decode(ids[1:-1]) for ids in encode_documents(documents, tokenizer)]
    assert decoded == documents


@pytest.mark.parametrize(
    ("kind", "lost"),
    {
        "bpe": (),
        "word": ("case", "accents", "Unicode form", "white space", "unknown words"),
        "word-split": ("case", "white space", "unknown words"),
        "whitespace": ("white space", "unknown words"),
        "char": ("unknown words",),
    }.items(),
)
def test_losses_are_named(kind, lost):
    assert lossy_features(build_tokenizer(kind, SENTENCES)) == lost


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({}, ()),
        ({"normalizer": normalizers.NFC()}, ("Unicode form",)),
        (
            {"normalizer": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])},
            ("case", "Unicode form"),
        ),
        ({"normalizer": normalizers.Replace(" ", "▁")}, ("white space",)),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, ("white space",)),
        ({"alphabet": False}, ("unknown words",)),
        ({"pre_tokenizer": pre_tokenizers.Digits()}, ("unknown words",)),
        (
            {
                "pre_tokenizer": pre_tokenizers.Sequence(
                    [
                        pre_tokenizers.Split(",", "removed"),
                        pre_tokenizers.ByteLevel(add_prefix_space=False),
                    ]
                )
            },
            ("separators",),
        ),
    ],
)
def test_losses_of_a_foreign_tokenizer(settings, lost):
    tokenizer = wrap(train_bytes(**settings))
    assert lossy_features(tokenizer) == lost
    if not lost:
        assert tokenizer.decode(ids_of(tokenizer, HARD)) == HARD


def test_losses_of_other_models():
    pieces = [("<unk>", 0.0), *((chr(c), -1.0) for c in range(97, 123))]
    assert "unknown words" in lossy_features(
        wrap(Tokenizer(models.Unigram(pieces, unk_id=0)), eos_token="a")
    )
    spelt = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -1.0) for byte in range(256))]
    model = models.Unigram(spelt, unk_id=0, byte_fallback=True)
    assert lossy_features(wrap(Tokenizer(model), eos_token="<0x00>")) == ()
    assert "unknown words" in lossy_features(
        wrap(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))
    )


@pytest.mark.parametrize("affix", ["end_of_word_suffix", "continuing_subword_prefix"])
def test_a_byte_has_a_token_wherever_in_a_word_it_stands(affix):
    tokenizer = train_bytes()
    letters = pre_tokenizers.ByteLevel.alphabet()
    mark = {"end_of_word_suffix": "{}@", "continuing_subword_prefix": "@{}"}[affix]
    for pieces, lost in (
        (letters, ("unknown words",)),
        ([*letters, *map(mark.format, letters)], ()),
    ):
        tokenizer.model = models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [], **{affix: "@"}
        )
        assert lossy_features(wrap(tokenizer)) == lost


def test_bos_in_front_and_nothing_behind(any_tokenizer):
    if any_tokenizer.bos_token == GPT2_END:
        pytest.skip("GPT-2 puts nothing in front")
    assert any_tokenizer("the cat").input_ids == [
        any_tokenizer.bos_token_id,
        *ids_of(any_tokenizer, "the cat"),
    ]
    assert any_tokenizer("").input_ids == [any_tokenizer.bos_token_id]
    batch = any_tokenizer(["a cat", "a"], padding=True)
    assert batch.input_ids[1][0] == any_tokenizer.pad_token_id  # generation goes on at the right
    assert set(batch) == {"input_ids", "attention_mask"}


def make_words(words, unknown="<unk>", **special):
    """A tokenizer of words as others train them: its special tokens stand in its vocabulary, by the
    names of texts.
    """
    names = [*(name for name in (unknown, "<s>", "</s>", "<pad>") if name), *words]
    backend = Tokenizer(
        models.WordLevel(
            {name: i for i, name in enumerate(names)}, **({"unk_token": unknown} if unknown else {})
        )
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(backend, eos_token="</s>", pad_token="<pad>", bos_token="<s>", **special)


@pytest.mark.parametrize("mark", ["</s>", "<s>", "<pad>"])
def test_a_loaded_tokenizer_that_reads_a_special_token_out_of_text_is_refused(mark):
    words = make_words(["the", "cat"])
    assert ids_of(words, "the <unk> dog") == [4, 0, 0]  # an unknown word is one, whatever it is
    for encode in (
        lambda: encode_ordinary(words, ["the cat", f"the {mark}"]),
        lambda: [*encode_documents([mark], words)],
    ):
        with pytest.raises(
            TokenizerError, match=f"'{mark}' stands in the text, and the tokenizer reads it as"
        ):
            encode()


def test_what_a_model_gives_for_unknown_words_is_found_by_whatever_name(tmp_path):
    words = make_words(["the"])
    assert words.unk_token_id is None
    assert find_unk_token_id(words) == 0
    words.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).unk_token == "<unk>"
    pieces = [("x", -1.0), ("<?>", 0.0), ("a", -1.0)]
    assert find_unk_token_id(wrap(Tokenizer(models.Unigram(pieces, unk_id=1)), eos_token="x")) == 1
    assert find_unk_token_id(wrap(Tokenizer(models.Unigram(pieces)), eos_token="x")) is None
    assert find_unk_token_id(build_tokenizer("bpe", SENTENCES)) is None


def test_a_text_that_cannot_be_encoded_is_one_clear_line():
    words = make_words(["the"], unknown=None)
    for encode in (lambda: ids_of(words, "a cat"), lambda: [*encode_documents(["a cat"], words)]):
        with pytest.raises(TokenizerError, match="the tokenizer cannot encode this text"):
            encode()


def test_ids_that_are_nobodys_count(tmp_path):
    """The library's trainer leaves a gap where the text has the name of a special token; a model
    needs a row there.
    """
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 4}, unk_token="<unk>"))
    assert required_vocab_size(wrap(backend, eos_token="the")) == 5


def test_a_long_line_is_encoded_in_time_by_the_letter(tokenizer):
    def take(size):
        start = time.process_time()
        encode_ordinary(tokenizer, ["at" * size])
        return time.process_time() - start

    assert min(take(80_000) for _ in range(3)) < 8 * min(take(20_000) for _ in range(3))


def test_what_a_call_leaves_switched_on_does_not_count(tokenizer):
    texts = [SENTENCES[0], "a", f"a {EOS}"]
    before = [encoding.ids for encoding in encode_ordinary(tokenizer, texts)]
    name = fingerprint_tokenizer(tokenizer)
    tokenizer(texts, padding=True, truncation=True, max_length=2)
    left_on = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    assert all(left_on)
    assert [encoding.ids for encoding in encode_ordinary(tokenizer, texts)] == before
    assert fingerprint_tokenizer(tokenizer) == name
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == left_on
    assert not tokenizer.backend_tokenizer.encode_special_tokens
    tokenizer(texts)  # switches them off again


def test_the_fingerprint_knows_which_tokens_begin_and_end():
    backend = train_bytes(special=(GPT2_END, BOS))
    assert fingerprint_tokenizer(wrap(backend)) != fingerprint_tokenizer(
        wrap(backend, eos_token=BOS)
    )


def test_threads_share_a_tokenizer():
    tokenizer = build_tokenizer("bpe", SENTENCES, 300)
    text = f"the {EOS} cat" * 20
    expected, wrong = ids_of(tokenizer, text), []

    def work():
        wrong.extend(1 for _ in range(100) if ids_of(tokenizer, text) != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def encode_one_by_one(tokenizer, texts):
    """The way it is said: BOS, the text's tokens, EOS."""
    return [
        [tokenizer.bos_token_id, *ids_of(tokenizer, text), tokenizer.eos_token_id] for text in texts
    ]


@settings(max_examples=examples(40), deadline=None)
@given(batches=st.lists(st.lists(TEXTS, max_size=4), max_size=9))
def test_batches_at_once_are_the_texts_one_by_one(any_tokenizer, batches):
    found = list(encode_batches(zip(batches, itertools.count(), strict=False), any_tokenizer))
    assert [state for _, _, state in found] == list(range(len(batches)))
    for (ids, lengths, _), texts in zip(found, batches, strict=True):
        expected = encode_one_by_one(any_tokenizer, texts)
        assert lengths.tolist() == list(map(len, expected))
        assert ids.tolist() == list(itertools.chain(*expected))


def test_what_was_read_before_a_break_is_encoded_first(tokenizer):
    def batches():
        for number in range(5):
            yield [SENTENCES[number]], number
        raise CorpusError("broke off")

    found = encode_batches(batches(), tokenizer)
    assert [next(found)[2] for _ in range(5)] == list(range(5))
    with pytest.raises(CorpusError, match="broke off"):
        next(found)


def test_few_batches_are_in_memory_at_once(tokenizer):
    begun = []
    batches = ((SENTENCES, begun.append(number)) for number in range(1000))
    for number, _ in enumerate(encode_batches(batches, tokenizer), start=1):
        assert len(begun) <= number + 2 * (os.cpu_count() or 1)


def test_a_setting_left_on_changes_no_batch(tokenizer):
    expected = encode_one_by_one(tokenizer, SENTENCES)
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    try:
        assert list(encode_documents(SENTENCES, tokenizer)) == expected
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_tokenizes(tokenizer, run_fork):
    expected = ids_of(tokenizer, SENTENCES[0])
    code = (
        "import os, sys\n"
        "from rung.data.tokenizer import encode_ordinary\n"
        "from rung.data.tokenizer_training import build_tokenizer\n"
        "tokenizer = build_tokenizer('bpe', sys.argv[2:] * 20, 300)\n"
        "encode_ordinary(tokenizer, sys.argv[2:])\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(str(encode_ordinary(tokenizer, [sys.argv[2]])[0].ids) != "
        "sys.argv[1])\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    assert run_fork("-c", code, expected, *SENTENCES, env=environment).returncode == 0
