"""How a conversation is written down: a chat template, the tokens that it needs, and their ids.

Nothing in a message becomes a special token, whatever it says; for what says nothing of them the ids and the mask are
those that `tokenizer.apply_chat_template` gives.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from rung.errors import TokenizerError
from rung.models import CausalModel
from rung.tokenizer import count_ids, encode_plainly

Message = dict[str, str]  # its `role` and its `content`
Conversation = list[Message]

HIDDEN = 0xF0000  # the first of Unicode's characters for private use: one for each special token
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
        return tuple(dict.fromkeys(re.findall(r"<\|[^|]+\|>", self.opening + self.between + self.end)))

    @property
    def template(self) -> str:
        """As Jinja; what the assistant says, and its end, is marked as generated."""
        opening, between, end, after = (json.dumps(p) for p in (self.opening, self.between, self.end, self.after))
        said = "message['content'] + " + end
        return (
            "{{- bos_token }}{%- for message in messages %}"
            f"{{{{- {opening} + message['role'] + {between} }}}}"
            "{%- if message['role'] == 'assistant' %}"
            f"{{% generation %}}{{{{- {said} }}}}{{% endgeneration %}}"
            f"{{%- else %}}{{{{- {said} }}}}{{%- endif %}}"
            f"{{{{- {after} }}}}"
            "{%- endfor %}"
            f"{{%- if add_generation_prompt %}}{{{{- {opening} + 'assistant' + {between} }}}}{{%- endif %}}"
        )


# Meta's, of Llama 3 (`ChatFormat` of llama_models); and OpenAI's ChatML.
LLAMA3 = ChatFormat(opening="<|start_header_id|>", between="<|end_header_id|>\n\n", end="<|eot_id|>")
CHATML = ChatFormat(opening="<|im_start|>", between="\n", end="<|im_end|>", after="\n")
ENDS = (LLAMA3.end, CHATML.end)
AFTER_HEADER = r"\A\n\n"  # the blank line that a part between special tokens begins with


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, and which of them the assistant said, the end of what it said among them."""

    ids: list[int]
    said: list[bool]


def teach_format(model: CausalModel, tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> None:
    """Give the tokenizer the format's special tokens and template, and the model a row for each new token.

    A tokenizer that has a template with marks for what is generated keeps it.
    """
    if not GENERATION.search(tokenizer.chat_template or ""):
        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in chat_format.tokens], True)
        _keep_blank_line_whole(tokenizer, chat_format.between)
        tokenizer.chat_template = chat_format.template
    if (size := count_ids(tokenizer)) > model.config.vocab_size:
        model.resize_token_embeddings(size)
    model.generation_config.eos_token_id = list(find_ends(model, tokenizer))


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], *, ask: bool = False
) -> list[Encoded]:
    """Each conversation by the tokenizer's template; `ask` ends with the header of an answer that is to come.

    Nothing is marked as said then: marking takes time quadratic in the length, and an answer needs none. Raises
    `TokenizerError` where it has no template, or the template refuses a conversation.
    """
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if not isinstance(template, str):
        raise TokenizerError("the tokenizer has no chat template: `rung tune RUN` makes a chat model of a run")
    special = sorted((t.content for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True)
    splitter = re.compile("(" + "|".join(map(re.escape, special)) + ")")
    try:
        rendered, spans = render_jinja_template(
            conversations=[[_hide(message, special) for message in messages] for messages in conversations],
            chat_template=template,
            return_assistant_tokens_mask=not ask and bool(GENERATION.search(template)),
            add_generation_prompt=ask,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # templates raise what they like, to say what they cannot write down
        raise TokenizerError(f"the chat template cannot write this conversation: {error}") from error
    pieces = [splitter.split(text) for text in rendered]
    plain = [_show(piece, special) for parts in pieces for piece in parts[::2]]
    encodings = iter(encode_plainly(tokenizer, plain))
    said = spans or [[]] * len(pieces)
    return [_join(tokenizer, parts, encodings, marks) for parts, marks in zip(pieces, said, strict=True)]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> list[int]:
    """The conversation so far, and the header of the answer that is to come."""
    return encode_conversations(tokenizer, [messages], ask=True)[0].ids


def find_ends(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer: the document's end, and the format's end of a message."""
    told = model.generation_config.eos_token_id if model.generation_config else None
    ends = [tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])]
    known = tokenizer.get_added_vocab()
    ends += [known.get(end) for end in ENDS]
    return tuple(sorted({end for end in ends if end is not None}))


def _keep_blank_line_whole(tokenizer: PreTrainedTokenizerBase, between: str) -> None:
    """Where GPT-2's pattern would cut the white space after a header by what follows it, cut it off before.

    Else an answer would be asked for with other tokens than it was trained to follow. Meta's tokenizer needs none.
    """
    space = between[len(between.rstrip()) :]
    backend = tokenizer.backend_tokenizer
    whole, alone = (backend.encode(text, add_special_tokens=False).ids for text in (f"{space}A", space))
    if whole[: len(alone)] == alone or backend.pre_tokenizer is None:
        return
    first = pre_tokenizers.Split(Regex(AFTER_HEADER), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, backend.pre_tokenizer])


def _join(tokenizer: PreTrainedTokenizerBase, parts: list[str], encodings: Iterator, marks: Sequence) -> Encoded:
    """Plain text and special tokens in turn, as one row; `marks` are the characters that the assistant said."""
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
    return Encoded(ids, _find_inside(places, marks))


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
    """The message with as many characters of private use in the place of each name of a special token."""
    content = message["content"]
    for number, token in enumerate(special):
        content = content.replace(token, chr(HIDDEN + number) * len(token))
    return {**message, "content": content}


def _show(text: str, special: Sequence[str]) -> str:
    for number, token in enumerate(special):
        text = text.replace(chr(HIDDEN + number) * len(token), token)
    return text
