"""Texts to token ids, and what a tokenizer keeps of a text.

Every tokenizer is a `tokenizers` object in a `PreTrainedTokenizerFast`, with BOS and EOS tokens.
Text is encoded as ordinary text: the name of a special token in it is never read as that token.
`lossy_features` names what decoding cannot restore, and is empty for a lossless tokenizer.
"""

import functools
import hashlib
import itertools
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer_training import (
    ASCII_WHITE_SPACE,
    BUILDERS,
    make_untrained,
    strip_plain_word,
)
from rung.data.words import WordIds, batch_texts, splits_at_white_space
from rung.device import count_cores
from rung.errors import TokenizerError

_State = TypeVar("_State")

ENCODE_BATCH_SIZE = 32  # documents
ENCODE_BATCH_CHARACTERS = 1 << 20
# SentencePiece spells what it does not know in tokens of bytes.
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

# The parts of a tokenizer that lose something, by what they lose.
_LOSSY_PARTS = {
    "case": {"Lowercase", "BertNormalizer"},
    "accents": {"StripAccents", "BertNormalizer"},
    "Unicode form": {"NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Nmt", "BertNormalizer"},
    "white space": {
        *("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"),
        # SentencePiece's marks of spaces: such a mark in the text reads as a space.
        *("Metaspace", "Strip", "Prepend", "Replace"),
    },
}
_NONCHARACTER = "\U0010ffff"  # no character, by Unicode's definition
# Settings under which a model encodes a text differently each time.
_RANDOM_SETTINGS = ("dropout", "alpha", "nbest_size")
# Held by whoever changes a tokenizer's settings for a moment.
_settings_lock = threading.Lock()


def lossy_features(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what the tokenizer loses of a text; `()` when decoding restores every text."""
    spec = _specify(tokenizer)
    parts = _open_sequences(spec["normalizer"]) + _open_sequences(spec["pre_tokenizer"])
    types = {part["type"] for part in parts}
    lost = [what for what, marks in _LOSSY_PARTS.items() if types & marks]
    for part in parts:
        if part.get("behavior") == "Removed":
            lost.append(
                "white space"
                if part.get("pattern") == {"Regex": ASCII_WHITE_SPACE}
                else "separators"
            )
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    strips = any((token.lstrip or token.rstrip) and not token.special for token in added)
    if (
        strips or any(part.get("add_prefix_space") for part in parts)
    ) and "white space" not in lost:
        lost.append("white space")
    if not _has_every_byte(spec["model"], byte_level="ByteLevel" in types):
        lost.append("unknown words")
    return tuple(lost)


def find_unk_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the model gives for an unknown word, or None.

    It is found by the model itself: `unk_token` of the settings may name another or none.
    """
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.Unigram):
        name = backend.model.unk_token
        return None if name is None else backend.token_to_id(name)
    try:
        tokens = backend.model.tokenize(_NONCHARACTER)
    except Exception:  # the model has no such token
        return None
    return tokens[0].id if len(tokens) == 1 else None  # several: it is spelled in bytes


def find_control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens that no ordinary text is encoded to, as ids to names.

    These are the special tokens, without that of unknown words and without bytes.
    """
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    names = {id: token.content for id, token in added.items() if token.special}
    if getattr(backend.model, "byte_fallback", False):
        # Text of unknown characters is encoded to tokens of bytes.
        names = {id: name for id, name in names.items() if not BYTE_TOKEN.fullmatch(name)}
    for role in ("bos", "eos", "pad"):
        names[getattr(tokenizer, f"{role}_token_id")] = getattr(tokenizer, f"{role}_token")
    unknown = find_unk_token_id(tokenizer)
    return {id: name for id, name in names.items() if id is not None and id != unknown}


def required_vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the largest token id: the vocabulary size that a model must have.

    It is more than the number of tokens where some ids are unused.
    """
    return max(tokenizer.get_vocab().values()) + 1


def encodable_vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return one more than the largest token id that a document has: of its text and its ends.

    It is less than `required_vocab_size` where special tokens were added that no text is encoded
    to, as of images.
    """
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder().items()
    ids = {*backend.get_vocab(with_added_tokens=False).values()}
    ids |= {id for id, token in added if not token.special}
    ids |= {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    return max(ids) + 1


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest that is equal for tokenizers that encode documents to equal ids."""
    spec = [_specify(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]


def encode_ordinary(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    """Encode each text as ordinary text, with character offsets.

    No special token is added or recognized in the text. Whatever the tokenizer's settings are,
    there is no truncation, no padding and no randomness. Raises `TokenizerError` for a text that
    the tokenizer cannot encode, or in which it recognizes a special token all the same.
    """
    backend = tokenizer.backend_tokenizer
    with _settings_lock:
        before = backend.encode_special_tokens, backend.truncation, backend.padding
        random_settings = _switch_to_ordinary(backend)
        try:
            return _encode_checked(backend.encode_batch, texts, find_control_tokens(tokenizer))
        finally:
            backend.encode_special_tokens = before[0]
            if before[1]:
                backend.enable_truncation(**before[1])
            if before[2]:
                backend.enable_padding(**before[2])
            for name, value in random_settings.items():
                setattr(backend.model, name, value)


def encode_after_bos(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Encode a prompt after BOS, if there is one; names of special tokens in it are text.

    Raises `TokenizerError` for a prompt without a token where there is no BOS either.
    """
    bos = tokenizer.bos_token_id
    ids = [*([] if bos is None else [bos]), *encode_ordinary(tokenizer, [prompt])[0].ids]
    if not ids:
        raise TokenizerError(
            "the tokenizer has no begin-of-text token to start from: give a prompt, a word at least"
        )
    return ids


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Yield BOS, the text's tokens and EOS for every text."""
    batches = ((batch, None) for batch in batch_texts(texts, ENCODE_BATCH_CHARACTERS))
    for ids, lengths, _ in encode_batches(batches, tokenizer):
        yield from (document.tolist() for document in numpy.split(ids, numpy.cumsum(lengths)[:-1]))


def encode_batches(
    batches: Iterable[tuple[list[str], _State]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[NDArray[numpy.integer], NDArray[numpy.integer], _State]]:
    """Encode batches of (texts, state) to (ids in one row, length of each text, state).

    Each text is BOS, its tokens and EOS. Each distinct word is encoded once (`words`), or each
    distinct text where the tokenizer looks beyond words. Batches are encoded in parallel threads,
    since the library, numpy and Arrow release Python's lock; at most two for each core are in
    memory. When `batches` raises, what was read before is yielded first.
    """
    # A copy of its own, whose settings no one else changes.
    spec = tokenizer.backend_tokenizer.to_str()
    backend = Tokenizer.from_str(spec)
    _switch_to_ordinary(backend)
    bos_eos = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    control = find_control_tokens(tokenizer)
    plain = _list_plain_words(parts := json.loads(spec), control)

    def encode_words(words: list[str]) -> list[list[int]]:
        known = [plain.get(strip_plain_word(word)) for word in words]
        rest = [word for word, id in zip(words, known, strict=True) if id is None]
        found = iter(_encode_checked(backend.encode_batch_fast, rest, control))
        return [next(found).ids if id is None else [id] for id in known]

    words = WordIds(encode_words)
    at_white_space = splits_at_white_space(parts, _specify_proven().values())
    cores = count_cores()
    pending: deque[tuple[Future, _State]] = deque()
    broken: Exception | None = None
    source = iter(batches)
    with ThreadPoolExecutor(cores) as threads:
        while True:
            while broken is None and len(pending) < 2 * cores:
                try:
                    texts, state = next(source)
                except StopIteration:
                    break
                except Exception as error:  # raised below, after what was read before
                    broken = error
                    break
                pending.append(
                    (threads.submit(_encode, words, at_white_space, bos_eos, texts), state)
                )
            if not pending:
                break
            future, state = pending.popleft()
            yield *future.result(), state
    if broken:
        raise broken


def _list_plain_words(spec: dict, control: Mapping[int, str]) -> dict[str, int]:
    """Return the words that a tokenizer of the kind `whitespace` knows, with their ids.

    There is none where they are looked for in other ways, as by another kind.
    """
    if not splits_at_white_space(spec, [_specify_proven()["whitespace"]]):
        return {}
    if spec["model"]["type"] != "WordLevel":
        return {}
    vocab = spec["model"]["vocab"]
    return {word: id for word, id in vocab.items() if id not in control and word}


def _encode(
    words: WordIds, at_white_space: bool, bos_eos: tuple[int, int], texts: list[str]
) -> tuple[NDArray[numpy.integer], NDArray[numpy.integer]]:
    row, lengths = words.encode_texts(texts, at_white_space=at_white_space)
    lengths += 2
    ends = numpy.cumsum(lengths)
    ids = numpy.empty(len(row) + 2 * len(texts), dtype=numpy.uint32)
    inside = numpy.ones(len(ids), dtype=bool)
    for places, token in zip((ends - lengths, ends - 1), bos_eos, strict=True):
        ids[places], inside[places] = token, False
    ids[inside] = row
    return ids, lengths


def _switch_to_ordinary(backend: Tokenizer) -> dict[str, float]:
    """Switch off special tokens, truncation, padding and randomness; return the last's settings."""
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return encode_deterministically(backend.model)


def encode_deterministically(model: models.Model) -> dict[str, float]:
    """Switch off the settings that make encoding random, and return those that were set."""
    random_settings = {
        name: getattr(model, name)
        for name in _RANDOM_SETTINGS
        if getattr(model, name, None) is not None
    }
    for name in random_settings:
        setattr(model, name, None)
    return random_settings


def _encode_checked(
    encode: Callable[..., list[Encoding]], texts: list[str], control: Mapping[int, str]
) -> list[Encoding]:
    try:
        encodings = encode(texts, add_special_tokens=False)
    # The library's own error, as for an unknown word where there is no token for one.
    except Exception as error:
        raise TokenizerError(
            f"the tokenizer cannot encode this text ({error}): train one, --tokenizer bpe"
        ) from error
    for encoding in encodings:
        if found := control.keys() & encoding.ids:
            name = control[min(found)]
            raise TokenizerError(
                f"{name!r} stands in the text, and the tokenizer reads it as its special token: "
                "take it out of the text, or choose a tokenizer that reads all text as text, "
                "--tokenizer bpe"
            )
    return encodings


@functools.cache
def _specify_proven() -> dict[str, dict]:
    """Return the specifications of tokenizers whose ids of a text are those of its words."""
    return {kind: json.loads(make_untrained(kind).to_str()) for kind in BUILDERS}


def _specify(tokenizer: PreTrainedTokenizerBase) -> dict:
    """Return the backend's specification without truncation and padding, which calls leave set."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in spec.items() if name not in ("truncation", "padding")}


def _has_every_byte(model: dict, byte_level: bool) -> bool:
    """Return whether each byte has a token at each place in a word: then no text is unknown."""
    pieces = (
        model["vocab"]
        if isinstance(model["vocab"], dict)
        else {piece for piece, _ in model["vocab"]}
    )
    if model["type"] in ("WordLevel", "WordPiece"):
        return False
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in pieces for byte in range(256))
    inside, ending = (
        {"", model.get(affix) or ""}
        for affix in ("continuing_subword_prefix", "end_of_word_suffix")
    )
    forms = itertools.product(inside, pre_tokenizers.ByteLevel.alphabet(), ending)
    return byte_level and all("".join(form) in pieces for form in forms)


def _open_sequences(spec: dict | None) -> list[dict]:
    """Return the parts of a normalizer or pre-tokenizer, those of sequences one by one."""
    if spec is None:
        return []
    inner = spec.get("normalizers") or spec.get("pretokenizers")
    return [part for child in inner for part in _open_sequences(child)] if inner else [spec]
