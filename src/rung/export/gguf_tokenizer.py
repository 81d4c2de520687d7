"""A tokenizer in GGUF: its tokens and their types, merges, end tokens and chat template.

llama.cpp does not read how a tokenizer splits text before it merges: it knows each way by a name.
Two of them are ours, GPT-2's and Llama 3's; a name that does not fit would give other tokens and no
error.
"""

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rung import runs
from rung.chat.template import AFTER_HEADER
from rung.data.tokenizer import lossy_features
from rung.data.tokenizer_loading import load_tokenizer
from rung.errors import TokenizerError
from rung.export.tiktoken import LLAMA3_PATTERN

logger = logging.getLogger(__name__)

LLAMA3_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": LLAMA3_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}


def write_tokenizer(gguf: ModuleType, writer: Any, folder: Path, config: PreTrainedConfig) -> None:
    """Write the folder's tokenizer, for a model of that configuration.

    Raises `TokenizerError` for one that llama.cpp would compute otherwise.
    """
    tokenizer = load_tokenizer(str(folder))
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")  # byte pairs, whoever made them
    writer.add_tokenizer_pre(find_pre_tokenizer(tokenizer, spec))
    tokens, kinds = _list_tokens(gguf, tokenizer, config.vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]
    ]
    if not merges:
        raise TokenizerError(
            "the tokenizer merges no bytes: llama.cpp reads none without a merge; train a larger "
            "one"
        )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    ends = _find_ends(tokenizer, folder, config)
    names = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for end, write in zip(ends, names, strict=False):
        write(end)
    if tokenizer.pad_token_id not in ends:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(_begins_with_bos(tokenizer, folder))
    writer.add_add_eos_token(False)
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def find_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, spec: dict[str, Any]) -> str:
    """Return llama.cpp's name for how the tokenizer splits text before it merges bytes.

    Raises `TokenizerError` where it has none.
    """
    cut = spec["pre_tokenizer"] or {"type": "none"}
    parts = cut.get("pretokenizers", [cut])
    if parts[0].get("pattern") == {"Regex": AFTER_HEADER}:
        logger.warning(
            "llama.cpp reads the blank line before a message as two tokens where the model has "
            "learned one: in its "
            "chat the answers may differ from those of `rung chat`"
        )
        parts = parts[1:]
    *before, last = (
        {key: value for key, value in part.items() if key != "trim_offsets"} for part in parts
    )
    plain = (
        spec["model"]["type"] == "BPE"
        and spec["normalizer"] is None
        and not lossy_features(tokenizer)
    )
    ignores = bool(spec["model"].get("ignore_merges"))
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False}
    if plain and not before and last == by_bytes | {"use_regex": True} and not ignores:
        return "gpt-2"
    if plain and before == [LLAMA3_SPLIT] and last == by_bytes | {"use_regex": False} and ignores:
        return "llama-bpe"
    kinds = " then ".join(part.get("pattern", {}).get("Regex") or part["type"] for part in parts)
    raise TokenizerError(
        f"the tokenizer is {spec['model']['type']} after {kinds}: GGUF is written of byte pairs "
        f"cut as GPT-2 or Llama "
        "3 cut them, and llama.cpp would read others wrongly. Train with --tokenizer bpe, gpt2 or "
        "llama3"
    )


def _list_tokens(
    gguf: ModuleType, tokenizer: PreTrainedTokenizerBase, size: int
) -> tuple[list[str], list[int]]:
    """List every token and its type.

    Room in the model beyond the tokenizer's tokens is filled with names that are not used.
    """
    kinds, added = gguf.TokenType, tokenizer.added_tokens_decoder
    tokens = [f"[PAD{number}]" for number in range(size)]
    found = [int(kinds.UNUSED)] * size
    for token, number in tokenizer.get_vocab().items():
        if number >= size:
            raise TokenizerError(
                f"the tokenizer has the token {number} ({token!r}) and the model {size}: they "
                f"differ"
            )
        special = kinds.CONTROL if number in added and added[number].special else kinds.USER_DEFINED
        tokens[number], found[number] = token, int(special if number in added else kinds.NORMAL)
    return tokens, found


def _find_ends(
    tokenizer: PreTrainedTokenizerBase, folder: Path, config: PreTrainedConfig
) -> list[int]:
    """List the tokens that end a text or a turn: the tokenizer's, and those the model stops at."""
    ends = [tokenizer.eos_token_id]
    settings = [config]
    if (folder / "generation_config.json").exists():
        settings.append(GenerationConfig.from_pretrained(folder))
    for setting in settings:
        found = setting.eos_token_id
        ends += found if isinstance(found, list) else [] if found is None else [found]
    ends = list(dict.fromkeys(ends))
    if len(ends) > 3:
        logger.warning("GGUF has room for three tokens that end a text: %s are left out", ends[3:])
    return ends[:3]


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether a text begins with the begin-of-text token, as every one does that a run saw."""
    return (folder / runs.RECORD).exists() or tokenizer("a").input_ids[:1] == [
        tokenizer.bos_token_id
    ]
