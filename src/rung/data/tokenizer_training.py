"""The kinds of tokenizer that are trained on a text: byte pairs, words, characters."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator

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

from rung.errors import TokenizerError, did_you_mean

logger = logging.getLogger(__name__)

LONGEST_WORD = 1024  # characters, of a word that byte pairs are learned from

# The last one is not called <unk>: tokenized text of others has that word in it, and there it is a
# word like any other.
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
SMALLEST = {
    "bpe": 256 + 3
}  # every byte, and the special tokens; five for the others: four of those, and a word
# KenLM's `query` splits words here alone: a no-break space is part of a word.
ASCII_SPACE = r"[\t\n\x0b\f\r ]+"


def build_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of a trainable `kind`, fitted to `texts`; the vocabulary holds the special tokens
    too.

    Byte pairs are learned from words of at most `LONGEST_WORD` characters, longer ones are cut and
    the log says so: the trainer's time is quadratic in a word's length. Nothing is cut in text that
    is encoded.

    Raises `TokenizerError` for an unknown kind or a vocabulary too small for it.
    """
    if kind not in BUILDERS:
        raise TokenizerError(f"unknown tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}")
    smallest = SMALLEST.get(kind, 5)
    if vocab_size is not None and vocab_size < smallest:
        raise TokenizerError(
            f"tokenizer.vocab_size is {vocab_size}: {kind} needs at least {smallest}"
        )
    tokenizer, trainer = BUILDERS[kind](vocab_size)
    tokenizer.train_from_iterator(
        _cut_long_words(texts, tokenizer.pre_tokenizer) if kind == "bpe" else texts, trainer
    )
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
    """How many tokens a byte-pair vocabulary should have for this much text.

    Rare tokens are learned badly, and a small model's weights are better spent elsewhere: the
    vocabulary grows more slowly than the text's root, is 1,024 at 2 MB, and between 320 and 16,384.
    """
    power = round(math.log2(1024 * (max(train_bytes, 1) / 2e6) ** 0.4))
    return max(320, min(2**power, 16_384))


Builder = Callable[[int | None], tuple[Tokenizer, trainers.Trainer]]


def _byte_pairs(vocab_size: int | None) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or suggest_vocab_size(2_000_000),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer


def _cut_long_words(texts: Iterable[str], splitter: pre_tokenizers.PreTokenizer) -> Iterator[str]:
    """The texts, cut inside what `splitter` takes for a word of more than `LONGEST_WORD`
    characters.
    """
    words = 0
    for text in texts:
        at = 0
        for _, (start, stop) in splitter.pre_tokenize_str(text) if _has_long_word(text) else ():
            words += stop - start > LONGEST_WORD
            for place in range(start + LONGEST_WORD, stop, LONGEST_WORD):
                yield text[at:place]
                at = place
        yield text[at:]
    if words:
        logger.warning(
            "%s of more than %s characters without a break: byte pairs were learned from pieces of "
            "them",
            "a word" if words == 1 else f"{words:,} words",
            f"{LONGEST_WORD:,}",
        )


def _has_long_word(text: str) -> bool:
    """Whether there may be one: then half its length without a break stands at some multiple of
    that half.
    """
    half = LONGEST_WORD // 2
    parts = (text[at : at + half] for at in range(0, len(text) - half + 1, half))
    return any(part.split(maxsplit=1) in ([], [part]) for part in parts)


def _characters(vocab_size: int | None) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _word_level(vocab_size or 2**20)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainer


def _words(vocab_size: int | None) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _word_level(vocab_size or 30_000)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.Whitespace()]
    )
    return tokenizer, trainer


def _lower_case_words(vocab_size: int | None) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _white_space_words(
        vocab_size, pre_tokenizers.WhitespaceSplit()
    )  # as Python's str.split
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer, trainer


def _white_space_words(
    vocab_size: int | None, split: pre_tokenizers.PreTokenizer | None = None
) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _word_level(vocab_size or 2**31)
    literal = "|".join(re.escape(special.removeprefix("<")) for special in (BOS, EOS, PAD, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            split or pre_tokenizers.Split(Regex(ASCII_SPACE), "removed"),
            pre_tokenizers.Split(Regex(f"^<(?=(?:{literal})$)"), "isolated"),
        ]
    )  # a special token's name that stands in the text is two words, neither of them special
    return tokenizer, trainer


def _word_level(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS, PAD, UNKNOWN], show_progress=False
    )
    return Tokenizer(models.WordLevel(unk_token=UNKNOWN)), trainer


BUILDERS: dict[str, Builder] = {
    "bpe": _byte_pairs,
    "word": _words,
    "word-split": _lower_case_words,
    "whitespace": _white_space_words,
    "char": _characters,
}
