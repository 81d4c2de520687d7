"""Text to ids and back: what is lossless comes back, what is lost is named, no text is taken for a
mark.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rung.data.tokenizer import (
    encode_batches,
    encode_documents,
    encode_ordinary,
    find_unk_token_id,
    fingerprint_tokenizer,
    lossy_features,
    required_vocab_size,
)
from rung.data.tokenizer_loading import PUBLISHED_TOKENIZERS, load_tokenizer
from rung.data.tokenizer_training import (
    BOS,
    EOS,
    MAX_WORD_LENGTH,
    PAD,
    TOKENIZERS,
    UNKNOWN,
    _byte_pairs,
    build_tokenizer,
    suggest_vocab_size,
)
from rung.errors import CorpusError, TokenizerError
from tests.conftest import SENTENCES

KINDS = [kind for kind in TOKENIZERS if kind not in PUBLISHED_TOKENIZERS]
GPT2_END = "<|endoftext|>"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HARD = "\n\tThe  café, e\u0301 and 𝔘ñí😀 don't 1234\r\n at  <unk>. "
# Any text, the names of special tokens among it.
TEXTS = st.lists(
    st.text(max_size=9) | st.sampled_from([BOS, EOS, PAD, UNKNOWN, GPT2_END, " ", HARD])
).map("".join)


def train_bytes(normalizer=None, pre_tokenizer=None, special=(GPT2_END,), alphabet=True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def save_gpt2(folder):
    """GPT-2's files: a vocabulary, merges, and one special token that begins and ends."""
    train_bytes().model.save(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def save_llama3(folder):
    """Llama 3's tokenizer.json: its own pattern, BOS put in front, no padding token."""
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = train_bytes(
        pre_tokenizer=pre_tokenizers.Sequence([split, level]), special=(BOS, EOS)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=True
    )
    whole.save_pretrained(folder)


def wrap(backend, **special):
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": GPT2_END} | special))


@pytest.fixture(scope="module", params=[*KINDS, *PUBLISHED_TOKENIZERS])
def any_tokenizer(request, tmp_path_factory):
    if request.param in KINDS:
        return build_tokenizer(request.param, [*SENTENCES, HARD])
    folder = tmp_path_factory.mktemp(request.param)
    {"gpt2": save_gpt2, "llama3": save_llama3}[request.param](folder)
    return load_tokenizer(str(folder))


def ids_of(tokenizer, text):
    return encode_ordinary(tokenizer, [text])[0].ids


def special_ids(tokenizer):
    return {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}


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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=30, deadline=None)
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


def test_ids_that_are_nobodys_count(tmp_path):
    """The library's trainer leaves a gap where the text has the name of a special token; a model
    needs a row there.
    """
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 4}, unk_token="<unk>"))
    assert required_vocab_size(wrap(backend, eos_token="the")) == 5


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
        plain, trainer = _byte_pairs(320)
        plain.train_from_iterator([text], trainer)
        assert json.loads(learn([text]))["model"] == json.loads(plain.to_str())["model"]
    assert not caplog.text


def test_the_trainer_takes_time_by_the_letter():
    """Twice the letters in one word take about twice as long; without a cut it is four times."""

    def take(size):
        text = "".join(random.Random(1).choices("ACGT", k=size))
        start = time.process_time()
        learn([text])
        return time.process_time() - start

    assert min(take(80_000) for _ in range(3)) < 8 * min(take(20_000) for _ in range(3))


def test_a_long_line_is_encoded_in_time_by_the_letter(tokenizer):
    def take(size):
        start = time.process_time()
        encode_ordinary(tokenizer, ["at" * size])
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


@settings(max_examples=40, deadline=None)
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
def test_a_forked_process_tokenizes(tokenizer):
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
    subprocess.run(
        [sys.executable, "-c", code, str(expected), *SENTENCES],
        env=environment,
        check=True,
        timeout=600,
    )


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
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/tokenizer.json").write_text("{")
    (tmp_path / "file.json").write_text("{}")
    for name, message in {
        str(tmp_path / "endless"): "has no end-of-text token",
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


def test_the_vocabulary_grows_with_the_text():
    assert suggest_vocab_size(2_000_000) == 1024
    assert suggest_vocab_size(1_000_000) == 1024
    assert suggest_vocab_size(30_000_000) == 4096
    assert suggest_vocab_size(0) == 320
    assert suggest_vocab_size(10**12) == 16_384
