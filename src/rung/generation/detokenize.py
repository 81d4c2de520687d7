"""Tokens to text as they come: no piece breaks a character, and nothing of a stop string is given
out.

Joined, the pieces are what decoding all tokens at once makes of those that are new: a token is
decoded after the ones that it follows, for a tokenizer may write it otherwise where it stands
first.
"""

from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rung.data.tokenizer import BYTE

UNFINISHED = "\ufffd"  # what bytes that are no character decode to
CONTEXT = 8  # tokens before, that decide how the first new one is written
LONGEST_PART = 3  # bytes, of a character that is not finished


class Pieces:
    """The text of one continuation of the tokens in `context`.

    `spaced` says that white space stands before it: where the tokenizer lost that, it puts its own
    there.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        context: Sequence[int] = (),
        *,
        spaced: bool = False,
    ) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.stop = stop
        self.ids: list[int] = []
        self.decoded = ""
        self.given = 0  # characters
        self.stopped = False
        self._tokens = self._cut_context(
            context
        )  # those that are decoded next, after some that are known
        self._known = len(self._tokens)
        self._before = self._decode(self._tokens).rstrip(UNFINISHED)  # what the known ones are
        self._has_space = spaced and not self._before[-1:].isspace()

    def add(self, token: int) -> str:
        """The text that is certain now that `token` is there."""
        self.ids.append(token)
        self._tokens.append(token)
        if not self._may_go_on(token):
            text = self._decode(self._tokens)
            if len(text) > len(self._before) and not text.endswith(UNFINISHED):
                self._keep(text)
        return self._give(self._certain())

    def finish(self) -> str:
        """The rest of the text; a character that its last token only begins is left out."""
        if not self.stopped:
            tokens = list(self._tokens)
            text = self._decode(tokens)
            while self._ends_in_part(tokens, text):
                text = self._decode(tokens[:-1])
                tokens.pop()
            self._keep(text.rstrip(UNFINISHED))
            self._certain()
        return self._give(len(self.decoded))

    @property
    def text(self) -> str:
        """All that was given out."""
        return self.decoded[: self.given]

    def _keep(self, text: str) -> None:
        """Take what is new in the text of `_tokens`; the next token is decoded after those that
        gave it.
        """
        new = text[len(self._before) :]
        if self._has_space and new:
            new, self._has_space = new.removeprefix(" "), False
        self.decoded += new
        del self._tokens[: self._known]
        self._known = len(self._tokens)
        self._before = self._decode(self._tokens)

    def _certain(self) -> int:
        """How many characters no later token can take back: a stop string cuts the text, its
        beginnings wait.
        """
        found = (self.decoded.find(text, max(0, self.given - len(text))) for text in self.stop)
        if places := [at for at in found if at >= 0]:
            self.decoded, self.stopped = self.decoded[: min(places)], True
        if self.stopped:
            return len(self.decoded)
        waiting = (
            size
            for text in self.stop
            for size in range(1, len(text))
            if self.decoded.endswith(text[:size])
        )
        return len(self.decoded) - max(waiting, default=0)

    def _give(self, end: int) -> str:
        piece = self.decoded[self.given : end]
        self.given = max(self.given, end)
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.backend.decode(tokens, skip_special_tokens=True)

    def _is_byte(self, token: int) -> bool:
        return BYTE.fullmatch(self.backend.id_to_token(token) or "") is not None

    def _may_go_on(self, token: int) -> bool:
        """Whether what comes next decides what it is: a run of bytes is decoded as a whole, over
        what is left out.
        """
        return self._is_byte(token) or not self._decode([token])

    def _ends_in_part(self, tokens: Sequence[int], text: str) -> bool:
        """Whether the last of these tokens is a byte that keeps the run which it ends from being
        characters.
        """
        is_new = len(self._tokens) - len(tokens) < LONGEST_PART and len(tokens) > self._known
        return is_new and text.endswith(UNFINISHED) and self._is_byte(tokens[-1])

    def _cut_context(self, context: Sequence[int]) -> list[int]:
        """The end of it: no part of a run of bytes, and some text, where there is any."""
        start = max(0, len(context) - CONTEXT)
        while start and self._is_byte(context[start]):
            start -= 1
        tokens = list(context[start:])
        return tokens if self._decode(tokens) else list(context)


def spell_token(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """The bytes that a token stands for within a text; None for a special one."""
    if token in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[token].special:
        return None
    once, twice = (tokenizer.decode([token] * count) for count in (1, 2))
    text = twice.removeprefix(once)  # of the first, some tokenizers leave the space out
    symbols, numbers = tokenizer.convert_ids_to_tokens(token), _byte_symbols()
    if UNFINISHED not in text:
        return text.encode()
    if BYTE.fullmatch(symbols):
        return bytes([int(symbols[3:5], 16)])
    return (
        symbols.encode()
        if set(symbols) - numbers.keys()
        else bytes(numbers[symbol] for symbol in symbols)
    )


@cache
def _byte_symbols() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's vocabulary, made once: a text may hold
    thousands of them.
    """
    return {symbol: byte for byte, symbol in bytes_to_unicode().items()}


def show_token(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    r"""A token's text; bytes of it that are only part of a character look like \xe2."""
    spelled = spell_token(tokenizer, token)
    return (
        str(tokenizer.convert_ids_to_tokens(token))
        if spelled is None
        else spelled.decode(errors="backslashreplace")
    )
