"""Text to token ids and back: every tokenizer is a `tokenizers` object in a
`PreTrainedTokenizerFast`.

`lossy_features` names what decoding cannot restore, and is empty for a lossless tokenizer. Every
tokenizer has a BOS and an EOS token; `tokenizer(text)` of one that is trained here adds BOS only.
"""

import hashlib
import itertools
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rung import hub, model_files
from rung.data.tokenizer_training import (
    ASCII_SPACE,
    BOS,
    BUILDERS,
    EOS,
    PAD,
    TOKENIZERS,
    UNKNOWN,
    build_tokenizer,
    suggest_vocab_size,
)
from rung.device import count_cores, find_mirror
from rung.errors import RunError, TokenizerError, did_you_mean, first_line

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "PUBLISHED_TOKENIZERS",
    "TOKENIZERS",
    "UNKNOWN",
    "build_tokenizer",
    "check_tokenizer",
    "encode_batches",
    "encode_documents",
    "encode_ordinary",
    "find_unk_token_id",
    "fingerprint_tokenizer",
    "load_tokenizer",
    "lossy_features",
    "required_vocab_size",
    "suggest_vocab_size",
]

logger = logging.getLogger(__name__)
State = TypeVar("State")

ENCODE_BATCH_SIZE = 32  # documents
BYTE = re.compile(
    r"<0x[0-9A-F]{2}>"
)  # the token of a byte, as SentencePiece spells what it does not know

PUBLISHED_TOKENIZERS = {"gpt2": "openai-community/gpt2", "llama3": "meta-llama/Meta-Llama-3-8B"}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that exists: `gpt2`, `llama3`, a folder, a run, or a Hub id (perhaps in
    `$RUNG_HUB_MIRROR`).

    Raises `TokenizerError` when it cannot be had or has no end-of-text token.
    """
    local = Path(name).exists()
    where = name if local else PUBLISHED_TOKENIZERS.get(name, name)
    if not local and (mirrored := find_mirror(where)):
        where, local = str(mirrored), True
    if name in BUILDERS and not local:
        raise TokenizerError(
            f"{name!r} is a kind of tokenizer to train, not one to load: --tokenizer {name}"
        )
    if not local and (hub.is_place(where) or "/" not in where):
        missing = (
            f"no such folder: {name!r}"
            if "/" in name
            else f"{did_you_mean(name, TOKENIZERS)} or give a folder"
        )
        raise TokenizerError(f"unknown tokenizer {name!r}: {missing}")
    folder = Path(where) if local and Path(where).is_dir() else None
    if folder:
        with _as_tokenizer_error():
            model_files.check_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where,
            trust_remote_code=False,
            local_files_only=not local and not hub.answers(where),
            padding_side="left",
            clean_up_tokenization_spaces=False,  # decoding gives back what was encoded, no tidier
        )
    except (
        Exception
    ) as error:  # missing files, no network, gated repository: the remedy is the same
        if folder:
            check_tokenizer(folder)
        is_missing = folder is not None and not (folder / "tokenizer.json").exists()
        why = "it has no tokenizer.json" if is_missing else first_line(error)
        raise TokenizerError(
            f"the tokenizer {where!r} could not be loaded ({why}); "
            "give a folder that holds tokenizer.json, or train one: --tokenizer bpe"
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer {where!r} has no tokenizer.json: choose one that the `tokenizers` "
            f"library runs"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer {where!r} has no end-of-text token: a document could not end"
        )
    if tokenizer.bos_token_id is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if _settle(tokenizer.backend_tokenizer.model):
        logger.warning(
            "the tokenizer %r would cut the same text differently each time: that is switched off",
            where,
        )
    if tokenizer.unk_token is None and (unknown := find_unk_token_id(tokenizer)) is not None:
        tokenizer.unk_token = tokenizer.convert_ids_to_tokens(unknown)
    return tokenizer


def check_tokenizer(folder: Path) -> None:
    """Raise `TokenizerError` where there is a `tokenizer.json` that the `tokenizers` library cannot
    read.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    with _as_tokenizer_error():
        model_files.read_json(path)
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # of the library's own
        raise TokenizerError(f"{path} is damaged: {error}") from error


@contextmanager
def _as_tokenizer_error() -> Iterator[None]:
    try:
        yield
    except RunError as error:
        raise TokenizerError(str(error)) from error


def lossy_features(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What this tokenizer loses: `()` when every text comes back exactly."""
    spec = _specify(tokenizer)
    parts = _components(spec["normalizer"]) + _components(spec["pre_tokenizer"])
    types = {part["type"] for part in parts}
    lost = [what for what, marks in _LOSSY.items() if types & marks]
    for part in parts:
        if part.get("behavior") == "Removed":
            lost.append(
                "white space" if part.get("pattern") == {"Regex": ASCII_SPACE} else "separators"
            )
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    strips = any((token.lstrip or token.rstrip) and not token.special for token in added)
    if (
        strips or any(part.get("add_prefix_space") for part in parts)
    ) and "white space" not in lost:
        lost.append("white space")
    if not _spells_everything(spec["model"], byte_level="ByteLevel" in types):
        lost.append("unknown words")
    return tuple(lost)


def find_unk_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that its model gives for what it does not know, however the tokenizer's settings
    call it; or None.
    """
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.Unigram):
        name = backend.model.unk_token
        return None if name is None else backend.token_to_id(name)
    try:
        tokens = backend.model.tokenize(_UNHEARD_OF)
    except Exception:  # it has none
        return None
    return tokens[0].id if len(tokens) == 1 else None  # else it spells it in bytes


def find_control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that no text may be, and their names: the special ones but that of unknown words,
    and bytes.
    """
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    names = {id: token.content for id, token in added.items() if token.special}
    if getattr(
        backend.model, "byte_fallback", False
    ):  # a text of characters that it does not know is made of these
        names = {id: name for id, name in names.items() if not BYTE.fullmatch(name)}
    for role in ("bos", "eos", "pad"):
        names[getattr(tokenizer, f"{role}_token_id")] = getattr(tokenizer, f"{role}_token")
    unknown = find_unk_token_id(tokenizer)
    return {id: name for id, name in names.items() if id is not None and id != unknown}


def required_vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest token id: the tokens that a model must know, also where some ids
    are nobody's.
    """
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for tokenizers that give documents equal ids."""
    spec = [_specify(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]


def encode_ordinary(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    """Token ids and character offsets of each text: no special token is added, and none is read out
    of the text.

    Nothing is cut off or filled up either, and nothing is left to chance, whatever the tokenizer's
    settings are. Raises `TokenizerError` for a text that it cannot but read a special token out of,
    or cannot encode.
    """
    backend = tokenizer.backend_tokenizer
    with _switched:
        before = backend.encode_special_tokens, backend.truncation, backend.padding
        chances = _read_plainly(backend)
        try:
            return _encode_as_text(backend.encode_batch, texts, find_control_tokens(tokenizer))
        finally:
            backend.encode_special_tokens = before[0]
            if before[1]:
                backend.enable_truncation(**before[1])
            if before[2]:
                backend.enable_padding(**before[2])
            for name, value in chances.items():
                setattr(backend.model, name, value)


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """BOS, the text's tokens, EOS, for every text."""
    source = iter(texts)
    batches = iter(lambda: list(itertools.islice(source, ENCODE_BATCH_SIZE)), [])
    for ids, lengths, _ in encode_batches(((batch, None) for batch in batches), tokenizer):
        yield from (document.tolist() for document in numpy.split(ids, numpy.cumsum(lengths)[:-1]))


def encode_batches(
    batches: Iterable[tuple[list[str], State]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[NDArray[numpy.integer], NDArray[numpy.integer], State]]:
    """Of each batch of texts the ids in one row, BOS, the text's tokens, EOS for every text; the
    length of each text's part of it; and what came with the batch.

    Several batches at once, in threads: the library lets go of Python's lock. Two for each core are
    in memory at the most. When `batches` breaks off, what was read before is given out first.
    """
    backend = Tokenizer.from_str(
        tokenizer.backend_tokenizer.to_str()
    )  # no one else switches this one's settings
    _read_plainly(backend)
    ends, control = (tokenizer.bos_token_id, tokenizer.eos_token_id), find_control_tokens(tokenizer)
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
                pending.append((threads.submit(_encode, backend, ends, control, texts), state))
            if not pending:
                break
            future, state = pending.popleft()
            yield *future.result(), state
    if broken:
        raise broken


def _encode(
    backend: Tokenizer, ends: tuple[int, int], control: Mapping[int, str], texts: list[str]
) -> tuple[NDArray[numpy.integer], NDArray[numpy.integer]]:
    bos, eos = ends
    found = [
        [bos, *encoding.ids, eos]
        for encoding in _encode_as_text(backend.encode_batch_fast, texts, control)
    ]
    lengths = numpy.fromiter(map(len, found), dtype=numpy.int64, count=len(found))
    return numpy.fromiter(
        itertools.chain.from_iterable(found), dtype=numpy.uint32, count=lengths.sum()
    ), lengths


def _read_plainly(backend: Tokenizer) -> dict[str, float]:
    """Switch off what reads special tokens out of a text, cuts it, fills it up, or encodes it by
    chance: those last settings are given back.
    """
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return _settle(backend.model)


def _settle(model: models.Model) -> dict[str, float]:
    """Have it encode a text always the same way, and say which settings it had that did not."""
    chances = {
        name: getattr(model, name) for name in _CHANCES if getattr(model, name, None) is not None
    }
    for name in chances:
        setattr(model, name, None)
    return chances


def _encode_as_text(
    encode: Callable[..., list[Encoding]], texts: list[str], control: Mapping[int, str]
) -> list[Encoding]:
    try:
        encodings = encode(texts, add_special_tokens=False)
    except (
        Exception
    ) as error:  # of the library's own; an unknown word that the tokenizer has no token for is one
        raise TokenizerError(
            f"the tokenizer cannot encode this text ({error}): train one, --tokenizer bpe"
        ) from error
    for encoding in encodings:
        if found := control.keys() & encoding.ids:
            name = control[min(found)]
            raise TokenizerError(
                f"{name!r} stands in the text, and the tokenizer reads it as its special token: "
                f"take it out of the "
                "text, or choose a tokenizer that reads every text as text, --tokenizer bpe"
            )
    return encodings


_LOSSY = {
    "case": {"Lowercase", "BertNormalizer"},
    "accents": {"StripAccents", "BertNormalizer"},
    "Unicode form": {"NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Nmt", "BertNormalizer"},
    "white space": {
        *("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"),
        *(
            "Metaspace",
            "Strip",
            "Prepend",
            "Replace",
        ),  # as SentencePiece marks spaces: a mark in the text is one too
    },
}
_UNHEARD_OF = "\U0010ffff"  # Unicode says that it is no character
_CHANCES = (
    "dropout",
    "alpha",
    "nbest_size",
)  # settings under which a model encodes a text differently each time
_switched = threading.Lock()  # whoever holds it may switch a tokenizer's settings for a moment


def _specify(tokenizer: PreTrainedTokenizerBase) -> dict:
    """What decides a text's ids: the backend without the settings that calls leave behind."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in spec.items() if name not in ("truncation", "padding")}


def _spells_everything(model: dict, byte_level: bool) -> bool:
    """Whether each of the 256 bytes has a token wherever it stands in a word, so that no text is
    unknown.
    """
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


def _components(spec: dict | None) -> list[dict]:
    """The parts of a normalizer or pre-tokenizer, sequences opened."""
    if spec is None:
        return []
    inner = spec.get("normalizers") or spec.get("pretokenizers")
    return [part for child in inner for part in _components(child)] if inner else [spec]
