"""Text to token ids and back: every tokenizer is a `tokenizers` object in a `PreTrainedTokenizerFast`.

A tokenizer knows what it loses (`losses`): nothing when it is lossless, else the things that decoding
cannot bring back. All have a begin and an end-of-text token; `tokenizer(text)` of one that is trained here
puts the first in front and leaves the second to whoever ends a document.
"""

import hashlib
import itertools
import json
import logging
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy
from numpy.typing import NDArray
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rung import hub
from rung.device import count_cores, find_mirror
from rung.errors import TokenizerError, did_you_mean

logger = logging.getLogger(__name__)
State = TypeVar("State")

ENCODED_AT_ONCE = 32  # documents

BOS, EOS, PAD, UNKNOWN = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<unk>"

TOKENIZERS = {
    "bpe": "byte-level byte-pair encoding trained on the train split; loses nothing (the default)",
    "word": "the book's words: lower case, no accents, digits and punctuation apart",
    "word-split": "the book's bigram: lower case, split on white space",
    "whitespace": "split on ASCII white space, as KenLM does, case kept: for text that is tokenized already",
    "char": "one token a character",
    "gpt2": "GPT-2's own, from the Hub or a local folder",
    "llama3": "Llama 3's own, from the Hub or a local folder",
}
SMALLEST = {"bpe": 256 + 3}  # every byte, and the special tokens; five for the others: four of those, and a word
ASCII_SPACE = r"[\t\n\x0b\f\r ]+"  # KenLM's `query` splits words here alone: a no-break space is part of a word
PUBLISHED = {"gpt2": "openai-community/gpt2", "llama3": "meta-llama/Meta-Llama-3-8B"}


def build_tokenizer(kind: str, texts: Iterable[str], vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of a trainable `kind`, fitted to `texts`; the vocabulary holds the special tokens too.

    Raises `TokenizerError` for an unknown kind or a vocabulary too small for it.
    """
    if kind not in _BUILDERS:
        raise TokenizerError(f"unknown tokenizer {kind!r}: {did_you_mean(kind, TOKENIZERS)}")
    smallest = SMALLEST.get(kind, 5)
    if vocab_size is not None and vocab_size < smallest:
        raise TokenizerError(f"tokenizer.vocab_size is {vocab_size}: {kind} needs at least {smallest}")
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
    """A tokenizer that exists: `gpt2`, `llama3`, a folder, a run, or a Hub id (perhaps in `$RUNG_HUB_MIRROR`).

    Raises `TokenizerError` when it cannot be had or has no end-of-text token.
    """
    local = Path(name).exists()
    where = name if local else PUBLISHED.get(name, name)
    if not local and (mirrored := find_mirror(where)):
        where, local = str(mirrored), True
    if name in _BUILDERS and not local:
        raise TokenizerError(f"{name!r} is a kind of tokenizer to train, not one to load: --tokenizer {name}")
    if not local and (hub.is_place(where) or "/" not in where):
        missing = f"no such folder: {name!r}" if "/" in name else f"{did_you_mean(name, TOKENIZERS)} or give a folder"
        raise TokenizerError(f"unknown tokenizer {name!r}: {missing}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where,
            local_files_only=not local and not hub.answers(where),
            padding_side="left",
            clean_up_tokenization_spaces=False,  # decoding gives back what was encoded, no tidier
        )
    except Exception as error:  # missing files, no network, gated repository: the remedy is the same
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(
            f"the tokenizer {where!r} could not be loaded ({why}); "
            "give a folder that holds tokenizer.json, or train one: --tokenizer bpe"
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer {where!r} has no tokenizer.json: choose one that the `tokenizers` library runs"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(f"the tokenizer {where!r} has no end-of-text token: a document could not end")
    if tokenizer.bos_token_id is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def suggest_vocab_size(train_bytes: int) -> int:
    """How many tokens a byte-pair vocabulary should have for this much text.

    Rare tokens are learned badly, and a small model's weights are better spent elsewhere: the vocabulary grows more
    slowly than the text's root, is 1,024 at 2 MB, and between 320 and 16,384.
    """
    power = round(math.log2(1024 * (max(train_bytes, 1) / 2e6) ** 0.4))
    return max(320, min(2**power, 16_384))


def losses(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What this tokenizer loses: `()` when every text comes back exactly."""
    spec = _specify(tokenizer)
    parts = _components(spec["normalizer"]) + _components(spec["pre_tokenizer"])
    types = {part["type"] for part in parts}
    lost = [what for what, marks in _LOSSY.items() if types & marks]
    for part in parts:
        if part.get("behavior") == "Removed":
            lost.append("white space" if part.get("pattern") == {"Regex": ASCII_SPACE} else "separators")
    if any(part.get("add_prefix_space") for part in parts) and "white space" not in lost:
        lost.append("white space")
    if not _spells_everything(spec["model"], byte_level="ByteLevel" in types):
        lost.append("unknown words")
    return tuple(lost)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that give documents equal ids."""
    spec = [_specify(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]


def encode_plainly(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    """Token ids and character offsets of each text: no special token is added, and none is read out of the text.

    Nothing is cut off or filled up either, whatever `tokenizer(..., truncation=True)` left switched on.
    """
    backend = tokenizer.backend_tokenizer
    with _switched:
        before = backend.encode_special_tokens, backend.truncation, backend.padding
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        try:
            return backend.encode_batch(texts, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = before[0]
            if before[1]:
                backend.enable_truncation(**before[1])
            if before[2]:
                backend.enable_padding(**before[2])


def encode_documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """BOS, the text's tokens, EOS, for every text."""
    source = iter(texts)
    batches = iter(lambda: list(itertools.islice(source, ENCODED_AT_ONCE)), [])
    for ids, lengths, _ in encode_batches(((batch, None) for batch in batches), tokenizer):
        yield from (document.tolist() for document in numpy.split(ids, numpy.cumsum(lengths)[:-1]))


def encode_batches(
    batches: Iterable[tuple[list[str], State]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[NDArray[numpy.integer], NDArray[numpy.integer], State]]:
    """Of each batch of texts the ids in one row, BOS, the text's tokens, EOS for every text; the length of each
    text's part of it; and what came with the batch.

    Several batches at once, in threads: the library lets go of Python's lock. Two for each core are in memory at the
    most. When `batches` breaks off, what was read before is given out first.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # no one else switches this one's settings
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id
    cores = count_cores()
    pending: deque[tuple[Future, State]] = deque()
    broken: Exception | None = None
    source = iter(batches)
    with ThreadPoolExecutor(cores) as threads:
        while True:
            while broken is None and len(pending) < 2 * cores:
                try:
                    texts, state = next(source)
                except StopIteration:
                    break
                except Exception as error:  # whatever it is, it is raised below
                    broken = error
                    break
                pending.append((threads.submit(_encode, backend, ends, texts), state))
            if not pending:
                break
            future, state = pending.popleft()
            yield *future.result(), state
    if broken:
        raise broken


def _encode(
    backend: Tokenizer, ends: tuple[int, int], texts: list[str]
) -> tuple[NDArray[numpy.integer], NDArray[numpy.integer]]:
    bos, eos = ends
    found = [[bos, *encoding.ids, eos] for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = numpy.fromiter(map(len, found), dtype=numpy.int64, count=len(found))
    return numpy.fromiter(itertools.chain.from_iterable(found), dtype=numpy.uint32, count=lengths.sum()), lengths


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
    tokenizer, trainer = _white_space_words(vocab_size, pre_tokenizers.WhitespaceSplit())  # as Python's str.split
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer, trainer


def _white_space_words(
    vocab_size: int | None, split: pre_tokenizers.PreTokenizer | None = None
) -> tuple[Tokenizer, trainers.Trainer]:
    tokenizer, trainer = _word_level(vocab_size or 2**31)
    literal = "|".join(re.escape(special.removeprefix("<")) for special in (BOS, EOS, PAD))
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


_BUILDERS: dict[str, Builder] = {
    "bpe": _byte_pairs,
    "word": _words,
    "word-split": _lower_case_words,
    "whitespace": _white_space_words,
    "char": _characters,
}
_LOSSY = {
    "case": {"Lowercase", "BertNormalizer"},
    "accents": {"StripAccents", "BertNormalizer"},
    "Unicode form": {"NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Nmt", "BertNormalizer"},
    "white space": {
        *("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"),
        *("Metaspace", "Strip", "Prepend", "Replace"),  # as SentencePiece marks spaces: a mark in the text is one too
    },
}
_switched = threading.Lock()  # whoever holds it may switch a tokenizer's settings for a moment


def _specify(tokenizer: PreTrainedTokenizerBase) -> dict:
    """What decides a text's ids: the backend without the settings that calls leave behind."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in spec.items() if name not in ("truncation", "padding")}


def _spells_everything(model: dict, byte_level: bool) -> bool:
    """Whether each of the 256 bytes has a token, so that no text is unknown."""
    pieces = model["vocab"] if isinstance(model["vocab"], dict) else {piece for piece, _ in model["vocab"]}
    if model["type"] in ("WordLevel", "WordPiece"):
        return False
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in pieces for byte in range(256))
    return byte_level and all(byte in pieces for byte in pre_tokenizers.ByteLevel.alphabet())


def _components(spec: dict | None) -> list[dict]:
    """The parts of a normalizer or pre-tokenizer, sequences opened."""
    if spec is None:
        return []
    inner = spec.get("normalizers") or spec.get("pretokenizers")
    return [part for child in inner for part in _components(child)] if inner else [spec]
