"""How a conversation is written down: a chat template, the tokens that it needs, and their ids.

Nothing in a message becomes a special token, whatever it says; for what says nothing of them the
ids and the mask are those that `tokenizer.apply_chat_template` gives.
"""

import functools
import itertools
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rung.data.tokenizer import encode_ordinary, required_vocab_size
from rung.errors import TokenizerError
from rung.generation import generate
from rung.models.base import CausalModel

logger = logging.getLogger(__name__)

Message = dict[str, str]  # its `role` and its `content`
Conversation = list[Message]
Spans = list[tuple[int, int]]  # from which character of a text to which

PLACEHOLDERS = (
    0xF0000  # the first of Unicode's characters for private use: one for each special token
)
ANSWER_MARKS = range(0x100000, 0x10FFFE)  # more of them, to stand around an answer
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """What stands around a message: `opening`, the role, `between`, the content, `end`, `after`."""

    opening: str
    between: str
    end: str  # of a message: it ends an answer too
    after: str = ""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens that it needs."""
        return tuple(
            dict.fromkeys(re.findall(r"<\|[^|]+\|>", self.opening + self.between + self.end))
        )

    @property
    def template(self) -> str:
        """As Jinja; what the assistant says, and its end, is marked as generated."""
        opening, between, end, after = (
            json.dumps(p) for p in (self.opening, self.between, self.end, self.after)
        )
        said = "message['content'] + " + end
        return (
            "{{- bos_token }}{%- for message in messages %}"
            f"{{{{- {opening} + message['role'] + {between} }}}}"
            "{%- if message['role'] == 'assistant' %}"
            f"{{% generation %}}{{{{- {said} }}}}{{% endgeneration %}}"
            f"{{%- else %}}{{{{- {said} }}}}{{%- endif %}}"
            f"{{{{- {after} }}}}"
            "{%- endfor %}"
            f"{{%- if add_generation_prompt %}}{{{{- {opening} + 'assistant' + {between} }}}}{{%- "
            f"endif %}}"
        )


# Meta's, of Llama 3 (`ChatFormat` of llama_models); and OpenAI's ChatML.
LLAMA3 = ChatFormat(
    opening="<|start_header_id|>", between="<|end_header_id|>\n\n", end="<|eot_id|>"
)
CHATML = ChatFormat(opening="<|im_start|>", between="\n", end="<|im_end|>", after="\n")
AFTER_HEADER = r"\A\n\n"  # the blank line that a part between special tokens begins with


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids, and which of them the assistant said, the end of what it said
    among them.
    """

    ids: list[int]
    assistant_mask: list[bool]


def set_up_chat_format(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat
) -> None:
    """Give the tokenizer the format's special tokens and template, and the model a row for each new
    token.

    A tokenizer that has a template keeps it. The log says which it was, and which tokens are new.
    """
    known = tokenizer.get_vocab()
    if not tokenizer.chat_template:
        tokenizer.add_tokens(
            [AddedToken(t, special=True, normalized=False) for t in chat_format.tokens], True
        )
        _keep_blank_line_whole(tokenizer, chat_format.between)
        tokenizer.chat_template = chat_format.template
    elif not GENERATION.search(tokenizer.get_chat_template()):
        logger.info(
            "the chat template is kept; it does not mark what the assistant says: that was found "
            "by writing each "
            "conversation with its answers marked"
        )
    if new := [
        token
        for token in chat_format.tokens
        if token in tokenizer.get_vocab() and token not in known
    ]:
        logger.info(
            "%d tokens are new to the model, for the chat format: %s", len(new), ", ".join(new)
        )
    if (size := required_vocab_size(tokenizer)) > model.config.vocab_size:
        model.resize_token_embeddings(size)
    model.generation_config.eos_token_id = list(find_chat_stop_ids(model, tokenizer))


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], *, ask: bool = False
) -> list[EncodedConversation]:
    """Each conversation by the tokenizer's template; `ask` ends with the header of an answer that
    is to come.

    Nothing is marked as said then: marking takes time quadratic in the length, and an answer needs
    none. Raises `TokenizerError` where it has no template, the template refuses a conversation, or
    what the assistant says in it cannot be found.
    """
    writer = _Writer(tokenizer)
    splitter = re.compile("(" + "|".join(map(re.escape, writer.special)) + ")")
    written = []
    for number, messages in enumerate(conversations, 1):
        try:
            hidden = [_hide(message, writer.special) for message in messages]
            written.append(
                (writer.write(hidden, ask=True), []) if ask else writer.write_marked(hidden)
            )
        except (
            Exception
        ) as error:  # templates raise what they like, to say what they cannot write down
            which = (
                f"this conversation ({number} of {len(conversations)})"
                if len(conversations) > 1
                else "this"
            )
            raise TokenizerError(f"the chat template cannot write {which}: {error}") from error
    pieces = [splitter.split(text) for text, _ in written]
    plain = [_show(piece, writer.special) for parts in pieces for piece in parts[::2]]
    encodings = iter(encode_ordinary(tokenizer, plain))
    return [
        _join(tokenizer, parts, encodings, spans)
        for parts, (_, spans) in zip(pieces, written, strict=True)
    ]


class _Writer:
    """Writes conversations by a tokenizer's template, and finds in them what the assistant says.

    A template without marks is given answers that characters of private use stand around. What the
    assistant says begins where the template, asked for an answer there, would end, and ends with
    the special token after it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        if not isinstance(template, str):
            raise TokenizerError(
                "the tokenizer has no chat template: `rung tune RUN` makes a chat model of a run"
            )
        self.template = template
        self.names = tokenizer.special_tokens_map
        added = tokenizer.added_tokens_decoder.values()
        self.special = sorted((t.content for t in added if t.special), key=len, reverse=True)

    def write(self, messages: Conversation, *, ask: bool = False) -> str:
        """As text."""
        return self._render(messages, add_generation_prompt=ask)[0][0]

    def write_marked(self, messages: Conversation) -> tuple[str, Spans]:
        """As text, and from where to where the assistant speaks in it."""
        if GENERATION.search(self.template):
            texts, spans = self._render(messages, return_assistant_tokens_mask=True)
            return texts[0], spans[0]
        text = self.write(messages)
        said = (number for number, message in enumerate(messages) if message["role"] == "assistant")
        return text, [self._find(text, messages, number) for number in said]

    @functools.cached_property
    def end(self) -> str | None:
        """The special token that the template ends an answer with, if there is one."""
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = self.write(talk)
            found = self._match_special(text[self._find_answer(text, talk, 1)[1] :])
        except Exception:  # whatever the template raises
            return None
        return found[1] if found else None

    def _render(self, messages: Conversation, **options: Any) -> tuple[list[str], list[Spans]]:
        return render_jinja_template(
            conversations=[messages], chat_template=self.template, **options, **self.names
        )

    def _find(self, text: str, messages: Conversation, number: int) -> tuple[int, int]:
        """Where the message of that number begins and ends in the text, with what ends it."""
        start, end = self._find_answer(text, messages, number)
        before, after = messages[:number], self._match_special(text[end:])
        asked = self._try(before, ask=True)
        if asked and text.startswith(asked) and len(asked) <= end:
            start = len(asked)
        elif start is None:
            raise ValueError(
                "it changes what the assistant says, so that nobody can tell what is to be learned"
            )
        elif not (header := self._find_header(before)) or not text[:start].endswith(header):
            start = len(text[:start].rstrip())  # the space before a word is part of its token
        return start, end + after.end() if after and after[1] == self.end else end

    def _find_answer(
        self, text: str, messages: Conversation, number: int
    ) -> tuple[int | None, int]:
        """Where the content of a message begins, None where the template writes something else
        first, and ends.
        """
        said = messages[number]["content"]
        everything = "".join(message["content"] for message in messages)
        opening, ending = itertools.islice(
            (c for c in map(chr, ANSWER_MARKS) if c not in everything), 2
        )
        core = said.strip()  # which a template may do too
        at = said.index(core)
        content = said[:at] + opening + core + ending + said[at + len(core) :]
        marked = self.write(
            [*messages[:number], {**messages[number], "content": content}, *messages[number + 1 :]]
        )
        end = marked.replace(opening, "").find(ending)
        if end < 0 or marked.replace(opening, "").replace(ending, "") != text:
            raise ValueError(
                "it changes what the assistant says, so that nobody can tell what is to be learned"
            )
        start = marked.find(opening)
        return None if start < 0 else start, end

    def _find_header(self, before: Conversation) -> str:
        """What the template adds to ask for an answer."""
        for messages in (before, [{"role": "user", "content": "a"}]):
            plain, asked = self._try(messages), self._try(messages, ask=True)
            if plain and asked:
                same = itertools.takewhile(
                    lambda pair: pair[0] == pair[1], zip(plain, asked, strict=False)
                )
                return asked[sum(1 for _ in same) :]
        return ""

    def _try(self, messages: Conversation, *, ask: bool = False) -> str | None:
        """The text; None where the template refuses it, as some do a beginning without a
        question.
        """
        try:
            return self.write(messages, ask=ask)
        except Exception:  # whatever the template raises
            return None

    def _match_special(self, rest: str) -> re.Match[str] | None:
        return (
            re.match(rf"\s*({'|'.join(map(re.escape, self.special))})", rest)
            if self.special
            else None
        )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> list[int]:
    """The conversation so far, and the header of the answer that is to come."""
    return encode_conversations(tokenizer, [messages], ask=True)[0].ids


def find_chat_stop_ids(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Find the tokens that end an answer: those that end a text, and the template's end of turn."""
    stop_ids = generate.find_stop_ids(model, tokenizer)
    end = _Writer(tokenizer).end if tokenizer.chat_template else None
    if end is None:
        return stop_ids
    return tuple(sorted({*stop_ids, tokenizer.convert_tokens_to_ids(end)}))


def _keep_blank_line_whole(tokenizer: PreTrainedTokenizerBase, between: str) -> None:
    """Where GPT-2's pattern would cut the white space after a header by what follows it, cut it off
    before.

    Else an answer would be asked for with other tokens than it was trained to follow. Meta's
    tokenizer needs none.
    """
    space = between[len(between.rstrip()) :]
    backend = tokenizer.backend_tokenizer
    whole, alone = (
        backend.encode(text, add_special_tokens=False).ids for text in (f"{space}A", space)
    )
    if whole[: len(alone)] == alone or backend.pre_tokenizer is None:
        return
    first = pre_tokenizers.Split(Regex(AFTER_HEADER), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, backend.pre_tokenizer])


def _join(
    tokenizer: PreTrainedTokenizerBase, parts: list[str], encodings: Iterator, marks: Sequence
) -> EncodedConversation:
    """Plain text and special tokens in turn, as one row; `marks` are the characters that the
    assistant said.
    """
    ids: list[int] = []
    places: list[int] = []
    at = 0
    for number, part in enumerate(parts):
        if number % 2:
            ids.append(tokenizer.convert_tokens_to_ids(part))
            places.append(at)
        else:
            encoding = next(encodings)
            ids += encoding.ids
            places += [at + start for start, _ in encoding.offsets]
        at += len(part)
    return EncodedConversation(ids, _find_inside(places, marks))


def _find_inside(places: Sequence[int], marks: Sequence) -> list[bool]:
    """Which of these places, in order, lie within one of the spans, in order too."""
    inside = []
    spans = iter(marks)
    start, end = next(spans, (0, 0))
    for place in places:
        while end and place >= end:
            start, end = next(spans, (0, 0))
        inside.append(start <= place < end)
    return inside


def _hide(message: Message, special: Sequence[str]) -> dict[str, str]:
    """The message with as many characters of private use in the place of each name of a special
    token.
    """
    content = message["content"]
    for number, token in enumerate(special):
        content = content.replace(token, chr(PLACEHOLDERS + number) * len(token))
    return {**message, "content": content}


def _show(text: str, special: Sequence[str]) -> str:
    for number, token in enumerate(special):
        text = text.replace(chr(PLACEHOLDERS + number) * len(token), token)
    return text
