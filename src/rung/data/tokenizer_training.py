"""Train a tokenizer on a text: byte pairs, words, or characters."""

import itertools
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator

import numpy
from numpy.typing import NDArray
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
from transformers import PreTrainedTokenizerFast

from rung.data.byte_pairs import learn_merges
from rung.data.words import count_words
from rung.errors import TokenizerError, did_you_mean

logger = logging.getLogger(__name__)

MAX_WORD_LENGTH = 1024  # characters; byte pairs are learned from pieces of longer words

# Not <unk>: published tokenized text holds that word, and there it is a word like any other.
BOS, EOS, PAD, UNKNOWN = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|unknown|>"

TOKENIZERS = {
    "bpe": "byte-level byte-pair encoding trained on the train split; loses nothing (the default)",
    "word": "the book's words: lower case, no accents, digits and punctuation apart",
    "word-split": "the book's bigram: lower case, split on white space",
    "whitespace": "split on ASCII white space, as KenLM does, case kept: for text that is "
    "tokenized already",
    "char": "one token a character",
    "gpt2": "GPT-2's own, from the Hub or a local folder",
    "llama3": "Llama 3's own, from the Hub or a local folder",
}
# Every byte and three special tokens; other kinds need four special tokens and a word.
MIN_VOCAB_SIZE = {"bpe": 256 + 3}
# Of byte pairs for a text of 2 MB; of other kinds it is all words, or all characters.
DEFAULT_VOCAB_SIZE = {"bpe": 1024, "word": 30_000}
WORDS_AT_ONCE = 2**14
# KenLM's `query` splits words only here: a no-break space is part of a word.
ASCII_WHITE_SPACE = r"[\t\n\x0b\f\r ]+"
_find_white_space = re.compile(ASCII_WHITE_SPACE).search


def build_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int | None = None
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of a `kind` on `texts`; `vocab_size` counts the special tokens too.

    Byte pairs are learned from words of at most `MAX_WORD_LENGTH` characters, because the trainer's
    time is quadratic in a word's length; longer words are cut, with a warning. Text to encode is
    not cut.

    Raises `TokenizerError` for an unknown kind or a vocabulary too small for it.
    """
    if kind not in BUILDERS:
        raise TokenizerError(f"unknown tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}")
    smallest = MIN_VOCAB_SIZE.get(kind, 5)
    if vocab_size is not None and vocab_size < smallest:
        raise TokenizerError(
            f"tokenizer.vocab_size is {vocab_size}: {kind} needs at least {smallest}"
        )
    tokenizer = make_untrained(kind)
    if kind == "bpe":
        texts = _cut_long_words(texts, tokenizer.pre_tokenizer)
    pre_tokens, counts = _count_pre_tokens(kind, tokenizer, texts)
    choose = _learn_byte_pairs if kind == "bpe" else _choose_words
    tokenizer.model = choose(pre_tokens, counts, vocab_size or DEFAULT_VOCAB_SIZE.get(kind))
    special_tokens = [BOS, EOS, PAD, *([] if kind == "bpe" else [UNKNOWN])]
    tokenizer.add_special_tokens(special_tokens)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    unknown = {"unk_token": UNKNOWN} if tokenizer.token_to_id(UNKNOWN) is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **unknown,
    )


def suggest_vocab_size(train_bytes: int) -> int:
    """Return the size of a byte-pair vocabulary for this much text: 320 to 16,384, 1,024 at 2 MB.

    It grows more slowly than the square root of the text, because rare tokens are learned badly and
    a small model's weights are better spent elsewhere.
    """
    power = round(math.log2(1024 * (max(train_bytes, 1) / 2e6) ** 0.4))
    return max(320, min(2**power, 16_384))


def make_untrained(kind: str) -> Tokenizer:
    """Make the tokenizer of a kind, with no token yet."""
    model = models.BPE() if kind == "bpe" else models.WordLevel(unk_token=UNKNOWN)
    tokenizer = Tokenizer(model)
    BUILDERS[kind](tokenizer)
    return tokenizer


def strip_plain_word(word: str) -> str:
    """Return the one pre-token that the kind `whitespace` makes of a word.

    It is empty where the word is none, several, or the name of a special token.
    """
    token = word.strip("\t\n\x0b\f\r ")
    return "" if _find_white_space(token) or token in (BOS, EOS, PAD, UNKNOWN) else token


def _count_pre_tokens(
    kind: str, tokenizer: Tokenizer, texts: Iterable[str]
) -> tuple[list[str], NDArray[numpy.int64]]:
    """Return the distinct pre-tokens of the texts, and how often each occurs.

    Each distinct word of the texts is cut into pre-tokens once, by the library where
    `strip_plain_word` cannot.
    """
    words, times = count_words(texts)
    counts: dict[str, int] = {}
    if kind == "whitespace":
        tokens = list(map(strip_plain_word, words))
        for token, number in zip(tokens, times.tolist(), strict=True):
            counts[token] = counts.get(token, 0) + number
        counts.pop("", None)
        words = [word for word, token in zip(words, tokens, strict=True) if not token]
        times = times[[not token for token in tokens]]
    found, numbers = _count_by_library(tokenizer, words, times)
    for token, number in zip(found, numbers.tolist(), strict=True):
        counts[token] = counts.get(token, 0) + number
    return list(counts), numpy.fromiter(counts.values(), dtype=numpy.int64, count=len(counts))


def _count_by_library(
    tokenizer: Tokenizer, words: list[str], times: NDArray[numpy.int64]
) -> tuple[list[str], NDArray[numpy.int64]]:
    """Return the distinct pre-tokens of words, of which each occurs so many times, with counts."""
    trainer = trainers.WordLevelTrainer(vocab_size=2**31, show_progress=False, special_tokens=[])
    counter = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    counter.normalizer, counter.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    counter.train_from_iterator(words, trainer)
    counts = numpy.zeros(counter.get_vocab_size(), dtype=numpy.int64)
    for start in range(0, len(words), WORDS_AT_ONCE):
        batch = slice(start, start + WORDS_AT_ONCE)
        found = [e.ids for e in counter.encode_batch_fast(words[batch], add_special_tokens=False)]
        ids = numpy.fromiter(itertools.chain.from_iterable(found), dtype=numpy.int64)
        numpy.add.at(counts, ids, numpy.repeat(times[batch], [len(row) for row in found]))
    vocab = counter.get_vocab()
    return sorted(vocab, key=vocab.__getitem__), counts


def _learn_byte_pairs(
    pre_tokens: list[str], counts: NDArray[numpy.int64], vocab_size: int | None
) -> models.BPE:
    assert vocab_size is not None
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = learn_merges(pre_tokens, counts, [BOS, EOS, PAD, *characters], vocab_size)
    return models.BPE({token: id for id, token in enumerate(tokens)}, merges)


def _choose_words(
    pre_tokens: list[str], counts: NDArray[numpy.int64], vocab_size: int | None
) -> models.WordLevel:
    """Take the most frequent words, of equally frequent ones the first by the alphabet."""
    ranked = sorted(zip((-counts).tolist(), pre_tokens, strict=True))
    tokens = [BOS, EOS, PAD, UNKNOWN, *(word for _, word in ranked)][:vocab_size]
    return models.WordLevel({token: id for id, token in enumerate(tokens)}, UNKNOWN)


def _cut_long_words(texts: Iterable[str], splitter: pre_tokenizers.PreTokenizer) -> Iterator[str]:
    """Yield the texts, cut inside words of more than `MAX_WORD_LENGTH` characters."""
    words = 0
    for text in texts:
        at = 0
        for _, (start, stop) in splitter.pre_tokenize_str(text) if _has_long_word(text) else ():
            words += stop - start > MAX_WORD_LENGTH
            for place in range(start + MAX_WORD_LENGTH, stop, MAX_WORD_LENGTH):
                yield text[at:place]
                at = place
        yield text[at:]
    if words:
        logger.warning(
            "%s of more than %s characters without a break: byte pairs were learned from pieces of "
            "them",
            "a word" if words == 1 else f"{words:,} words",
            f"{MAX_WORD_LENGTH:,}",
        )


def _has_long_word(text: str) -> bool:
    """Return whether a word may be longer than `MAX_WORD_LENGTH`; errs only on the side of yes.

    Such a word fills an aligned part of half its length, so these parts alone are looked at.
    """
    half = MAX_WORD_LENGTH // 2
    parts = (text[at : at + half] for at in range(0, len(text) - half + 1, half))
    return any(part.split(maxsplit=1) in ([], [part]) for part in parts)


def _split_bytes(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def _split_characters(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()


def _split_words(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.Whitespace()]
    )


def _split_lower_case(tokenizer: Tokenizer) -> None:
    # Splits as Python's str.split does.
    _split_white_space(tokenizer, pre_tokenizers.WhitespaceSplit())
    tokenizer.normalizer = normalizers.Lowercase()


def _split_white_space(
    tokenizer: Tokenizer, split: pre_tokenizers.PreTokenizer | None = None
) -> None:
    literal = "|".join(re.escape(special.removeprefix("<")) for special in (BOS, EOS, PAD, UNKNOWN))
    # The name of a special token in the text becomes two words, neither of them special.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            split or pre_tokenizers.Split(Regex(ASCII_WHITE_SPACE), "removed"),
            pre_tokenizers.Split(Regex(f"^<(?=(?:{literal})$)"), "isolated"),
        ]
    )


# Each gives a tokenizer what comes before its model. None of it looks beyond a word, by
# `words.split_words`, and the white space before it.
BUILDERS: dict[str, Callable[[Tokenizer], None]] = {
    "bpe": _split_bytes,
    "word": _split_words,
    "word-split": _split_lower_case,
    "whitespace": _split_white_space,
    "char": _split_characters,
}
