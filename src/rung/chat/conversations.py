"""Load conversations from a file, from the Hub, or from the interpreter's own documentation.

A source without splits is split by a hash of each conversation, so that adding some moves no other.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.chat.python_qa import make_python_qa
from rung.chat.template import ChatMessage, Conversation
from rung.data.files import check_file, hash_to_unit_interval
from rung.data.sources import load_hub_splits, parse_hub_name
from rung.errors import CorpusError

logger = logging.getLogger(__name__)

DEFAULT_CONVERSATIONS = "python-qa"
ROLES = {  # ShareGPT's names, and those of the Hub's data sets
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
TOOL_ROLES = ("tool", "function")
HELD_OUT_SHARE = 0.05  # for validation, and again for test
MIN_CONVERSATIONS = 3


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Conversations to train on, to validate on, and to test on; each test set has a name."""

    name: str
    train: list[Conversation]
    validation: list[Conversation]
    tests: dict[str, list[Conversation]]

    @property
    def fingerprint(self) -> str:
        """Return a hash of all conversations."""
        everything = json.dumps([self.train, self.validation, self.tests])
        return hashlib.sha256(everything.encode()).hexdigest()[:16]


def load_conversations(source: str = DEFAULT_CONVERSATIONS) -> Conversations:
    """Load `python-qa`, a file of JSON lines, or hf:ORG/NAME.

    Duplicates are dropped, and the log says how many. Raises `CorpusError` where the source cannot
    be read, has rows that `read_conversation` refuses, or has too few conversations.
    """
    if source == DEFAULT_CONVERSATIONS:
        parts = make_python_qa()
    elif source.startswith("hf:"):
        splits = load_hub_splits(*parse_hub_name(source))
        parts = {
            name: list(_read_rows(rows, f"{source}, {name} split")) for name, rows in splits.items()
        }
    else:
        parts = {"train": list(_read_rows(read_json_lines(Path(source).expanduser()), source))}
    lines = len(parts["train"])
    parts = {
        name: list({json.dumps(c): c for c in found}.values()) for name, found in parts.items()
    }
    different = len(parts["train"])
    count = f"{lines:,} lines, {different:,} different conversation{'s' * (different != 1)}"
    if different < MIN_CONVERSATIONS:
        raise CorpusError(f"{source} has {count}: at least {MIN_CONVERSATIONS} are needed")
    if different < lines and source != DEFAULT_CONVERSATIONS:
        logger.info("%s has %s: of equal ones one is kept", source, count)
    train, validation = parts.pop("train"), parts.pop("validation", [])
    if not validation:
        train, validation = _hold_out(train, 0)
    if not parts:
        train, parts["test"] = _hold_out(train, HELD_OUT_SHARE)
    name = (
        source if source == DEFAULT_CONVERSATIONS or source.startswith("hf:") else Path(source).name
    )
    return Conversations(name=name, train=train, validation=validation, tests=parts)


def _hold_out(
    conversations: list[Conversation], start: float
) -> tuple[list[Conversation], list[Conversation]]:
    """Split off those whose hash is in [start, start + HELD_OUT_SHARE), but at least one."""
    places = [hash_to_unit_interval(json.dumps(c)) for c in conversations]
    inside = {i for i, place in enumerate(places) if start <= place < start + HELD_OUT_SHARE}
    inside = inside or {min(range(len(places)), key=places.__getitem__)}
    rest = [c for i, c in enumerate(conversations) if i not in inside]
    return rest, [conversations[i] for i in sorted(inside)]


def read_json_lines(path: Path, what: str = "conversations") -> Iterator[Any]:
    """Yield the values of a file of JSON lines, or of one JSON list.

    Raises `CorpusError`, which calls the values `what`, where the file cannot be read.
    """
    if path.exists() and not path.is_dir():
        check_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CorpusError(
            f"no {what} at {path}: {error.strerror}; name a file of JSON lines"
        ) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {what} are JSON lines") from error
    if text.lstrip().startswith("[") and not _goes_on(text.lstrip()):
        yield from _parse(text, str(path))
        return
    # Not `splitlines`: a message may hold the other characters that Unicode breaks lines at.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parse(line, f"{path}, line {number}")


def _goes_on(text: str) -> bool:
    """Return whether more follows the first JSON value, which then is no list of all."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return False
    return bool(text[end:].strip())


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{where}: this is not JSON ({error.msg}): write one value a line"
        ) from error


def _read_rows(rows: Iterable[Any], source: str) -> Iterator[Conversation]:
    for number, row in enumerate(rows, 1):
        yield read_conversation(row, f"{source}, conversation {number}")


def read_conversation(row: Any, where: str) -> Conversation:
    """Read the messages of one row, with OpenAI's roles.

    A row has a list `messages` (OpenAI) or `conversations` (ShareGPT), a `prompt` and its
    `completion`, or an `instruction`, its `output` and perhaps an `input` (Alpaca). Raises
    `CorpusError` for any other row, and where the assistant answers nothing.
    """
    fields = row if isinstance(row, dict) else {}
    found = fields.get("messages") or fields.get("conversations")
    if isinstance(found, list):
        conversation = [read_message(message, where) for message in found]
    elif "prompt" in fields and "completion" in fields:
        asked, said = (
            read_turns(fields[key], role, where)
            for key, role in (("prompt", "user"), ("completion", "assistant"))
        )
        conversation = [*asked, *said]
    elif "instruction" in fields and "output" in fields:
        parts = [
            *read_turns(fields["instruction"], "user", where),
            *read_turns(fields.get("input") or "", "user", where),
        ]
        question = "\n\n".join(part["content"] for part in parts if part["content"])
        conversation = [
            {"role": "user", "content": question},
            *read_turns(fields["output"], "assistant", where),
        ]
    else:
        raise CorpusError(
            f"{where}: it has no list `messages` (OpenAI) or `conversations` (ShareGPT), no "
            "`prompt` and `completion`, no `instruction` and `output` (Alpaca)"
        )
    if not any(message["role"] == "assistant" for message in conversation):
        raise CorpusError(
            f"{where}: the assistant says nothing in it, so there is nothing to learn"
        )
    if not any(message["role"] == "assistant" for message in conversation[1:]):
        raise CorpusError(
            f"{where}: nothing is said before the assistant speaks, so there is nothing to answer"
        )
    return conversation


def read_turns(said: Any, role: str, where: str) -> Conversation:
    """Read a text as a message of `role`, or a list as messages.

    Raises `CorpusError` where it is neither.
    """
    messages = said if isinstance(said, list) else [{"role": role, "content": said}]
    return [read_message(message, where) for message in messages]


def read_message(message: Any, where: str) -> ChatMessage:
    """Read a message with OpenAI's roles; its content is left as it is.

    Training and the server both read messages by this function. Raises `CorpusError` for a value
    that is no message, and for tools and media, which no model here supports.
    """
    fields = message if isinstance(message, dict) else {}
    role, content = (
        fields.get("role", fields.get("from")),
        fields.get("content", fields.get("value")),
    )
    if why := _find_unsupported(fields, role, content):
        raise CorpusError(f"{where}: {why}")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
        raise CorpusError(
            f"{where}: {json.dumps(message)[:80]} is no message: it needs a `role`, one of "
            f"{', '.join(ROLES)}, and a text, or parts of the type text, as its `content`"
        )
    check_surrogates(content, where)
    return {"role": ROLES[role], "content": content}


def _find_unsupported(fields: dict[str, Any], role: Any, content: Any) -> str | None:
    """Name what no model here supports in a message; None where there is nothing of the kind."""
    if role in TOOL_ROLES:
        return f"the role {role!r} is not supported: the models here call no tools"
    if calls := next(
        (name for name in ("tool_calls", "function_call", "audio") if fields.get(name)), None
    ):
        return f"{calls} is not supported: leave it out, and its answers"
    if content in (None, []) and isinstance(role, str) and role in ROLES:
        return (
            f"content is {'null' if content is None else 'an empty list'}: give a text, which may "
            f"be empty"
        )
    kinds = (
        [part.get("type") for part in content if isinstance(part, dict)]
        if isinstance(content, list)
        else []
    )
    if other := next((kind for kind in kinds if isinstance(kind, str) and kind != "text"), None):
        return f"{other[:100]} parts are not supported: text only"
    return None


def check_surrogates(text: str, where: str) -> None:
    """Raise `CorpusError` for a lone surrogate, which JSON can hold and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = json.dumps(text[error.start])
        raise CorpusError(
            f"{where}: a text in it has {half}, half a character: correct it, or leave it out"
        ) from error
