"""Encode conversations by a chat template, with a mask of the assistant's tokens.

Nothing in a message becomes a special token. For messages without the names of special tokens the
ids and the mask are those of `tokenizer.apply_chat_template`.
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
from rung.evaluation.alignment import Span
from rung.generation import generate
from rung.models.base import CausalModel

logger = logging.getLogger(__name__)

ChatMessage = dict[str, str]  # its `role` and its `content`
Conversation = list[ChatMessage]

PLACEHOLDERS = 0xF0000  # Unicode's first character for private use: one for each special token
ANSWER_MARKS = range(0x100000, 0x10FFFE)  # further ones, to stand around an answer
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The text around a message: `opening`, the role, `between`, the content, `end`, `after`."""

    opening: str
    between: str
    end: str  # of a message, and so of an answer
    after: str = ""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the special tokens of the format."""
        return tuple(
            dict.fromkeys(re.findall(r"<\|[^|]+\|>", self.opening + self.between + self.end))
        )

    @property
    def template(self) -> str:
        """Return the Jinja template, which marks answers and their ends as generated."""
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
LLAMA3_FORMAT = ChatFormat(
    opening="<|start_header_id|>", between="<|end_header_id|>\n\n", end="<|eot_id|>"
)
CHATML_FORMAT = ChatFormat(opening="<|im_start|>", between="\n", end="<|im_end|>", after="\n")
AFTER_HEADER = r"\A\n\n"  # the blank line after a header


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation's token ids, and a mask of those that the assistant generates.

    The token that ends an answer is one of these.
    """

    ids: list[int]
    assistant_mask: list[bool]


def set_up_chat_format(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat
) -> None:
    """Add the format's special tokens and template to the tokenizer, and embeddings to the model.

    A tokenizer that has a template keeps it. The log names the new tokens.
    """
    known = tokenizer.get_vocab()
    if not tokenizer.chat_template:
        tokenizer.add_tokens(
            [AddedToken(t, special=True, normalized=False) for t in chat_format.tokens], True
        )
        _keep_blank_line_whole(tokenizer, chat_format.between)
        tokenizer.chat_template = chat_format.template
    elif not GENERATION_TAG.search(tokenizer.get_chat_template()):
        logger.info(
            "the chat template is kept; it does not mark what the assistant says: that was found "
            "by writing each conversation with its answers marked"
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
    """Encode each conversation by the tokenizer's template.

    With `ask` it ends with the header of the next answer, and has no mask: finding the answers
    takes time quadratic in the length. Raises `TokenizerError` where the tokenizer has no template,
    the template refuses a conversation, or the answers cannot be found in its text.
    """
    renderer = _TemplateRenderer(tokenizer)
    splitter = re.compile("(" + "|".join(map(re.escape, renderer.special)) + ")")
    written = []
    for number, messages in enumerate(conversations, 1):
        try:
            hidden = [_hide(message, renderer.special) for message in messages]
            written.append(
                (renderer.render(hidden, ask=True), [])
                if ask
                else renderer.render_with_answers(hidden)
            )
        except Exception as error:  # templates raise any error to refuse a conversation
            which = (
                f"this conversation ({number} of {len(conversations)})"
                if len(conversations) > 1
                else "this"
            )
            raise TokenizerError(f"the chat template cannot write {which}: {error}") from error
    pieces = [splitter.split(text) for text, _ in written]
    plain = [_show(piece, renderer.special) for parts in pieces for piece in parts[::2]]
    encodings = iter(encode_ordinary(tokenizer, plain))
    return [
        _join(tokenizer, parts, encodings, spans)
        for parts, (_, spans) in zip(pieces, written, strict=True)
    ]


class _TemplateRenderer:
    """Renders conversations by a tokenizer's template, and finds the answers in the text.

    Where the template does not mark its answers, it renders them between characters of private use.
    An answer begins where the template's prompt for it would end, and ends with the special token
    after it.
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

    def render(self, messages: Conversation, *, ask: bool = False) -> str:
        """Render the messages as text."""
        return self._apply(messages, add_generation_prompt=ask)[0][0]

    def render_with_answers(self, messages: Conversation) -> tuple[str, list[Span]]:
        """Render the messages as text, and return the spans of the assistant's answers in it."""
        if GENERATION_TAG.search(self.template):
            texts, spans = self._apply(messages, return_assistant_tokens_mask=True)
            return texts[0], spans[0]
        text = self.render(messages)
        said = (number for number, message in enumerate(messages) if message["role"] == "assistant")
        return text, [self._find(text, messages, number) for number in said]

    @functools.cached_property
    def end(self) -> str | None:
        """Return the special token that ends an answer, None where there is none."""
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = self.render(talk)
            found = self._match_special(text[self._find_answer(text, talk, 1)[1] :])
        except Exception:  # templates raise any error
            return None
        return found[1] if found else None

    def _apply(self, messages: Conversation, **options: Any) -> tuple[list[str], list[list[Span]]]:
        return render_jinja_template(
            conversations=[messages], chat_template=self.template, **options, **self.names
        )

    def _find(self, text: str, messages: Conversation, number: int) -> tuple[int, int]:
        """Find the span of the answer of that number, with the token that ends it."""
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
            start = len(text[:start].rstrip())  # the space before a word belongs to its token
        return start, end + after.end() if after and after[1] == self.end else end

    def _find_answer(
        self, text: str, messages: Conversation, number: int
    ) -> tuple[int | None, int]:
        """Find where a message's content begins and ends in the text.

        The beginning is None where the template drops it.
        """
        said = messages[number]["content"]
        everything = "".join(message["content"] for message in messages)
        opening, ending = itertools.islice(
            (c for c in map(chr, ANSWER_MARKS) if c not in everything), 2
        )
        core = said.strip()  # as some templates do
        at = said.index(core)
        content = said[:at] + opening + core + ending + said[at + len(core) :]
        marked = self.render(
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
        """Return the text that the template adds to ask for an answer."""
        for messages in (before, [{"role": "user", "content": "a"}]):
            plain, asked = self._try(messages), self._try(messages, ask=True)
            if plain and asked:
                same = itertools.takewhile(
                    lambda pair: pair[0] == pair[1], zip(plain, asked, strict=False)
                )
                return asked[sum(1 for _ in same) :]
        return ""

    def _try(self, messages: Conversation, *, ask: bool = False) -> str | None:
        """Render the messages, or return None where the template refuses them."""
        try:
            return self.render(messages, ask=ask)
        except Exception:  # templates raise any error
            return None

    def _match_special(self, rest: str) -> re.Match[str] | None:
        return (
            re.match(rf"\s*({'|'.join(map(re.escape, self.special))})", rest)
            if self.special
            else None
        )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> list[int]:
    """Encode the conversation so far and the header of the next answer."""
    return encode_conversations(tokenizer, [messages], ask=True)[0].ids


def find_chat_stop_ids(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Find the tokens that end an answer: those that end a text, and the template's end of turn."""
    stop_ids = generate.find_stop_ids(model, tokenizer)
    end = _TemplateRenderer(tokenizer).end if tokenizer.chat_template else None
    if end is None:
        return stop_ids
    return tuple(sorted({*stop_ids, tokenizer.convert_tokens_to_ids(end)}))


def _keep_blank_line_whole(tokenizer: PreTrainedTokenizerBase, between: str) -> None:
    """Split the white space after a header off before GPT-2's pattern splits it by what follows.

    Otherwise a prompt would end with other tokens than the answers in training follow. Meta's
    tokenizer does not need this.
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
    """Join plain text and special tokens, in turn, to one row; `marks` are the answers' spans."""
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
    """Return which of the sorted places lie within one of the sorted spans."""
    inside = []
    spans = iter(marks)
    start, end = next(spans, (0, 0))
    for place in places:
        while end and place >= end:
            start, end = next(spans, (0, 0))
        inside.append(start <= place < end)
    return inside


def _hide(message: ChatMessage, special: Sequence[str]) -> dict[str, str]:
    """Replace the names of special tokens by as many characters of private use."""
    content = message["content"]
    for number, token in enumerate(special):
        content = content.replace(token, chr(PLACEHOLDERS + number) * len(token))
    return {**message, "content": content}


def _show(text: str, special: Sequence[str]) -> str:
    for number, token in enumerate(special):
        text = text.replace(chr(PLACEHOLDERS + number) * len(token), token)
    return text
