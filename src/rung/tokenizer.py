"""Text to token ids and back: every tokenizer is a `tokenizers` object in a `PreTrainedTokenizerFast`.

A tokenizer knows what it loses (`losses`): nothing when it is lossless, else the things that decoding
cannot bring back. All have a begin and an end-of-text token; `tokenizer(text)` puts the first in front
and leaves the second to whoever ends a document.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rung.errors import TokenizerError, did_you_mean

logger = logging.getLogger(__name__)

ENCODED_AT_ONCE = 256  # documents

BOS, EOS, PAD, UNKNOWN = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<unk>"

TOKENIZERS = {
    "bpe": "byte-level byte-pair encoding trained on the train split; loses nothing (the default)",
    "word": "the book's words: lower case, no accents, digits and punctuation apart",
    "word-split": "the book's bigram: lower case, split on white space",
    "whitespace": "split on white space, case kept: for text that is tokenized already",
    "char": "one token a character",
    "gpt2": "GPT-2's own, from the Hub or a local folder",
    "llama3": "Llama 3's own, from the Hub or a local folder",
}
PUBLISHED = {"gpt2": "openai-community/gpt2", "llama3": "meta-llama/Meta-Llama-3-8B"}


def build_tokenizer(kind: str, texts: Iterable[str], vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of a trainable `kind`, fitted to `texts`; the vocabulary holds the special tokens too.

    Raises `TokenizerError` for an unknown kind or a vocabulary too small for it.
    """
    if kind not in _BUILDERS:
        raise TokenizerError(f"unknown tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}")
    tokenizer, trainer = _BUILDERS[kind](vocab_size)
    tokenizer.train_from_iterator(texts, trainer)
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


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that exists: `gpt2`, `llama3`, a folder, a run, or a Hub id.

    Raises `TokenizerError` when it cannot be had or has no end-of-text token.
    """
    where = PUBLISHED.get(name, name)
    if not (Path(where).exists() or name in PUBLISHED or "/" in where):
        raise TokenizerError(f"unknown tokenizer {name!r}: {did_you_mean(name, TOKENIZERS)} or give a folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # missing files, no network, gated repository: the remedy is the same
        raise TokenizerError(
            f"the tokenizer {where!r} could not be loaded ({str(error).strip().splitlines()[0]}); "
            "give a folder that holds tokenizer.json, or train one: --tokenizer bpe"
        ) from error
    if tokenizer.eos_token_id is None:
        raise TokenizerError(f"the tokenizer {where!r} has no end-of-text token: a document could not end")
    if tokenizer.bos_token_id is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def suggest_vocab_size(train_bytes: int) -> int:
    """How many tokens a byte-pair vocabulary should have for this much text.

    Rare tokens are learned badly and common ones cheaply: the vocabulary grows with the square root of
    the text. The rule is 1,024 at 2 MB, between 320 and 16,384.
    """
    power = round(math.log2(1024 * math.sqrt(max(train_bytes, 1) / 2e6)))
    return max(320, min(2**power, 16_384))


def losses(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What this tokenizer loses: `()` when every text comes back exactly."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {part["type"] for part in _components(spec["normalizer"])}
    lost = [what for what, marks in _LOSSY_NORMALIZERS.items() if parts & marks]
    pre = _components(spec["pre_tokenizer"])
    if any(part["type"] in ("Whitespace", "WhitespaceSplit") for part in pre):
        lost.append("white space")
    if spec["model"].get("unk_token") and not spec["model"].get("byte_fallback"):
        lost.append("unknown words")
    return tuple(lost)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that give equal ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def encode_plainly(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    """Token ids and character offsets of each text: no special token is added, and none is read out of the text."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        return backend.encode_batch(texts, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before


def encode_documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """BOS, the text's tokens, EOS, for every text."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == ENCODED_AT_ONCE:
            yield from _encode(batch, tokenizer)
            batch = []
    yield from _encode(batch, tokenizer)


def _encode(batch: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for encoding in encode_plainly(tokenizer, batch) if batch else ():
        yield [bos, *encoding.ids, eos]


Builder = Callable[[int | None], tuple[Tokenizer, trainers.Trainer]]


def _byte_pairs(vocab_size: int | None) -> tuple[Tokenizer, trainers.Trainer]:
    smallest = 256 + 3
    vocab_size = vocab_size or suggest_vocab_size(2_000_000)
    if vocab_size < smallest:
        raise TokenizerError(f"tokenizer.vocab_size is {vocab_size}: byte-pair encoding needs at least {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer


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
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Whitespace()])
    return tokenizer, trainer


def _lower_case_words(vocab_size: int | None) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _white_space_words(vocab_size)
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer, trainer


def _white_space_words(vocab_size: int | None) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _word_level(vocab_size or 2**31)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer, trainer


def _word_level(vocab_size: int) -> tuple[Tokenizer, trainers.Trainer]:
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS, PAD, UNKNOWN], show_progress=False
    )
    return Tokenizer(models.WordLevel(unk_token=UNKNOWN)), trainer


_BUILDERS: dict[str, Builder] = {
    "bpe": _byte_pairs,
    "word": _words,
    "word-split": _lower_case_words,
    "whitespace": _white_space_words,
    "char": _characters,
}
_LOSSY_NORMALIZERS = {
    "case": {"Lowercase", "BertNormalizer"},
    "accents": {"StripAccents", "BertNormalizer"},
    "Unicode form": {"NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Nmt"},
}


def _components(spec: dict | None) -> list[dict]:
    """The parts of a normalizer or pre-tokenizer, sequences opened."""
    if spec is None:
        return []
    inner = spec.get("normalizers") or spec.get("pretokenizers")
    return [part for child in inner for part in _components(child)] if inner else [spec]
