"""Load a tokenizer: GPT-2's or Llama 3's own, a folder, a run, or a Hub id."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rung import hub, model_files
from rung.data.tokenizer import encode_deterministically, find_unk_token_id
from rung.data.tokenizer_training import BUILDERS, TOKENIZERS
from rung.errors import RunError, TokenizerError, did_you_mean, first_line

logger = logging.getLogger(__name__)

PUBLISHED_TOKENIZERS = {"gpt2": "openai-community/gpt2", "llama3": "meta-llama/Meta-Llama-3-8B"}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer: `gpt2`, `llama3`, a folder, a run, or a Hub id.

    A copy in `$RUNG_HUB_MIRROR` is read in the place of the Hub. Raises `TokenizerError` when it
    cannot be loaded or has no end-of-text token.
    """
    tokenizer = load_foreign_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer {name!r} has no end-of-text token: a document could not end"
        )
    return fill_bos(tokenizer)


def fill_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Let documents begin with the end-of-text token, as GPT-2's do, where nothing else begins one.

    Returns the tokenizer; without an end-of-text token it stays as it is.
    """
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def load_foreign_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer as it is: it may have no begin-of-text token and no end-of-text token.

    Raises `TokenizerError` when it cannot be loaded or is none of the `tokenizers` library.
    """
    where, local = _locate(name)
    tokenizer = _read(where, local=local, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer {where!r} has no tokenizer.json: choose one that the `tokenizers` "
            "library runs"
        )
    backend = tokenizer.backend_tokenizer
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    if not backend.get_vocab(with_added_tokens=False).keys() - added:
        # transformers makes a tokenizer without tokens where it finds no files of one.
        raise TokenizerError(
            f"the tokenizer {where!r} has no tokens: copy the model's tokenizer.json there"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if encode_deterministically(tokenizer.backend_tokenizer.model):
        logger.warning(
            "the tokenizer %r would cut the same text differently each time: that is switched off",
            where,
        )
    if tokenizer.unk_token is None and (unknown := find_unk_token_id(tokenizer)) is not None:
        tokenizer.unk_token = tokenizer.convert_ids_to_tokens(unknown)
    return tokenizer


def check_tokenizer(folder: Path) -> None:
    """Raise `TokenizerError` for a `tokenizer.json` that the `tokenizers` library cannot read."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    with _as_tokenizer_error():
        model_files.read_json(path)
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises its own kinds
        raise TokenizerError(f"{path} is damaged: {error}") from error


def _locate(name: str) -> tuple[str, bool]:
    """Return the path or Hub id to load, and whether it is a path.

    Raises `TokenizerError` for a name that can be neither.
    """
    local = Path(name).exists()
    where = name if local else PUBLISHED_TOKENIZERS.get(name, name)
    if not local and (mirrored := hub.find_mirror(where)):
        where, local = str(mirrored), True
    if name in BUILDERS and not local:
        raise TokenizerError(
            f"{name!r} is a kind of tokenizer to train, not one to load: --tokenizer {name}"
        )
    if not local and not hub.is_hub_id(where):
        missing = (
            f"no such folder: {name!r}"
            if "/" in name
            else f"{did_you_mean(name, TOKENIZERS)} or give a folder"
        )
        raise TokenizerError(f"unknown tokenizer {name!r}: {missing}")
    return where, local


def _read(where: str, *, local: bool, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    folder = Path(where) if local and Path(where).is_dir() else None
    if folder:
        with _as_tokenizer_error():
            model_files.check_files(folder)
    try:
        return AutoTokenizer.from_pretrained(
            where,
            trust_remote_code=trust_remote_code,
            local_files_only=not local and not hub.is_reachable(where),
            padding_side="left",
            clean_up_tokenization_spaces=False,  # decoding must give back what was encoded
        )
    # Missing files, no network, a gated repository: the remedy is the same.
    except Exception as error:
        if folder:
            check_tokenizer(folder)
        is_missing = folder is not None and not (folder / "tokenizer.json").exists()
        why = "it has no tokenizer.json" if is_missing else first_line(error)
        if "custom code" in str(error):
            why = hub.CODE_IS_NOT_RUN
        raise TokenizerError(
            f"the tokenizer {where!r} could not be loaded ({why}); "
            "give a folder that holds tokenizer.json, or train one: --tokenizer bpe"
        ) from error


@contextmanager
def _as_tokenizer_error() -> Iterator[None]:
    try:
        yield
    except RunError as error:
        raise TokenizerError(str(error)) from error
