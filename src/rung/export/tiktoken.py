"""Llama 3's tokenizer, Meta's `tokenizer.model`: tokens by rank in base64."""

import base64
import binascii
import json
from pathlib import Path

from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from rung.data.tokenizer_training import BOS, EOS
from rung.errors import TokenizerError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
NUM_SPECIAL_TOKENS = 256  # tokens after the others
# What stands at which place among them; the rest is reserved, and numbered.
LLAMA3 = {0: BOS, 1: EOS, 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
LLAMA31 = LLAMA3 | {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read the tokens of a `tokenizer.model` and their ranks.

    Raises `TokenizerError` for another format, such as Llama 2's, of SentencePiece.
    """
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, binascii.Error) as error:
        raise TokenizerError(
            f"{path} is no tokenizer of Llama 3: its lines are not tokens in base64"
        ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{path} is damaged: its ranks are not 0 to {len(ranks) - 1}")
    return ranks


def read_tiktoken(path: Path, names: dict[int, str] = LLAMA31) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a `tokenizer.model`.

    `names` are those of its special tokens (`LLAMA3` or `LLAMA31`).
    """
    ranks = read_ranks(path)
    backend = _Converter(
        ranks, pattern=LLAMA3_PATTERN, extra_special_tokens=list_special_tokens(names)
    ).converted()
    begin = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, len(ranks))]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **({"pad_token": names[4]} if 4 in names else {}),
    )


def list_special_tokens(names: dict[int, str]) -> list[str]:
    """List the names of all special tokens, in order."""
    unnamed = (place for place in range(NUM_SPECIAL_TOKENS) if place not in names)
    reserved = {
        place: f"<|reserved_special_token_{number}|>" for number, place in enumerate(unnamed)
    }
    return [(names | reserved)[place] for place in range(NUM_SPECIAL_TOKENS)]


def write_tiktoken(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a `tokenizer.model`, byte for byte the one that `read_tiktoken` would have read.

    Raises `TokenizerError` for a tokenizer that is not made as Llama 3's is.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = spec["model"].get("vocab")
    as_made = json.dumps(LLAMA3_PATTERN) in json.dumps(spec["pre_tokenizer"]) and spec["model"].get(
        "ignore_merges"
    )
    if (
        not as_made
        or sorted(vocab.values()) != list(range(len(vocab)))
        or len(tokenizer) != len(vocab) + NUM_SPECIAL_TOKENS
    ):
        raise TokenizerError(
            f"tokenizer.model holds byte pairs cut as Llama 3 cuts them, and after them "
            f"{NUM_SPECIAL_TOKENS} special tokens"
        )
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    tokens = sorted(vocab, key=vocab.__getitem__)
    lines = (base64.b64encode(bytes(byte_of[character] for character in token)) for token in tokens)
    path.write_bytes(b"".join(b"%s %d\n" % (line, rank) for rank, line in enumerate(lines)))


class _Converter(TikTokenConverter):
    """The converter of transformers, given the ranks; alone it needs the `tiktoken` package."""

    def __init__(self, ranks: dict[bytes, int], **options: object) -> None:
        super().__init__(**options)
        self.ranks = ranks

    def load_tiktoken_bpe(self, tiktoken_url: str) -> dict[bytes, int]:
        return self.ranks
