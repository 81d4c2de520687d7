"""Turn tokens into text as they come, never half a character and nothing of a stop string.

The pieces join to what decoding all tokens at once adds to the text. Each token is decoded after
those that it follows, for a tokenizer may write it differently where it stands first.
"""

from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rung.data.tokenizer import BYTE_TOKEN

REPLACEMENT_CHARACTER = "\ufffd"  # what bytes that are no character decode to
CONTEXT_TOKENS = 8  # tokens before the text that decide how its first token is written
MAX_PARTIAL_BYTES = 3  # bytes of a character that is not finished


class Detokenizer:
    """Detokenizes one continuation of the tokens in `context`.

    `after_space` says that white space stands before the continuation. Where the tokenizer lost
    that space, it would put its own there, which is left out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        context: Sequence[int] = (),
        *,
        after_space: bool = False,
    ) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.stop = stop
        self.ids: list[int] = []
        self.decoded = ""
        self.emitted = 0  # characters
        self.stopped = False
        # The tokens that are decoded next, after `_known` ones whose text, `_before`, is known.
        self._tokens = self._cut_context(context)
        self._known = len(self._tokens)
        self._before = self._decode(self._tokens).rstrip(REPLACEMENT_CHARACTER)
        self._drops_space = after_space and not self._before[-1:].isspace()

    def add(self, token: int) -> str:
        """Append a token and return the text that has become certain."""
        self.ids.append(token)
        self._tokens.append(token)
        if not self._is_open(token):
            text = self._decode(self._tokens)
            if len(text) > len(self._before) and not text.endswith(REPLACEMENT_CHARACTER):
                self._keep(text)
        return self._emit(self._find_certain_end())

    def finish(self) -> str:
        """Return the rest of the text, without a character that its last token only begins."""
        if not self.stopped:
            tokens = list(self._tokens)
            text = self._decode(tokens)
            while self._ends_in_part(tokens, text):
                text = self._decode(tokens[:-1])
                tokens.pop()
            self._keep(text.rstrip(REPLACEMENT_CHARACTER))
            self._find_certain_end()
        return self._emit(len(self.decoded))

    @property
    def text(self) -> str:
        """The text that was returned so far."""
        return self.decoded[: self.emitted]

    def _keep(self, text: str) -> None:
        """Add what is new in `text`, which `_tokens` decode to, and make them the known ones."""
        new = text[len(self._before) :]
        if self._drops_space and new:
            new, self._drops_space = new.removeprefix(" "), False
        self.decoded += new
        del self._tokens[: self._known]
        self._known = len(self._tokens)
        self._before = self._decode(self._tokens)

    def _find_certain_end(self) -> int:
        """Find how many characters no later token can take back.

        A stop string cuts the text; what may be the beginning of one waits.
        """
        found = (self.decoded.find(text, max(0, self.emitted - len(text))) for text in self.stop)
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

    def _emit(self, end: int) -> str:
        text = self.decoded[self.emitted : end]
        self.emitted = max(self.emitted, end)
        return text

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.backend.decode(tokens, skip_special_tokens=True)

    def _is_byte(self, token: int) -> bool:
        return BYTE_TOKEN.fullmatch(self.backend.id_to_token(token) or "") is not None

    def _is_open(self, token: int) -> bool:
        """Whether later tokens decide what this one is.

        A run of bytes is decoded as a whole, also across special tokens, which decode to nothing.
        """
        return self._is_byte(token) or not self._decode([token])

    def _ends_in_part(self, tokens: Sequence[int], text: str) -> bool:
        """Whether the last token is a byte that keeps its run from decoding to characters."""
        is_new = len(self._tokens) - len(tokens) < MAX_PARTIAL_BYTES and len(tokens) > self._known
        return is_new and text.endswith(REPLACEMENT_CHARACTER) and self._is_byte(tokens[-1])

    def _cut_context(self, context: Sequence[int]) -> list[int]:
        """Cut the context to its end: whole runs of bytes, and some text where there is any."""
        start = max(0, len(context) - CONTEXT_TOKENS)
        while start and self._is_byte(context[start]):
            start -= 1
        tokens = list(context[start:])
        return tokens if self._decode(tokens) else list(context)


def token_to_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """Return the bytes that a token stands for within a text; None for a special token."""
    if token in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[token].special:
        return None
    # The second of two is asked for: of the first, some tokenizers leave the space out.
    once, twice = (tokenizer.decode([token] * count) for count in (1, 2))
    text = twice.removeprefix(once)
    symbols, numbers = tokenizer.convert_ids_to_tokens(token), _byte_symbols()
    if REPLACEMENT_CHARACTER not in text:
        return text.encode()
    if BYTE_TOKEN.fullmatch(symbols):
        return bytes([int(symbols[3:5], 16)])
    if set(symbols) - numbers.keys():
        return symbols.encode()
    return bytes(numbers[symbol] for symbol in symbols)


# Cached: a text may hold thousands of these characters.
@cache
def _byte_symbols() -> dict[str, int]:
    """Map the characters that stand for bytes in GPT-2's vocabulary to these bytes."""
    return {symbol: byte for byte, symbol in bytes_to_unicode().items()}


def token_to_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    r"""Return a token's text; bytes that are only part of a character are written as \xe2."""
    spelled = token_to_bytes(tokenizer, token)
    if spelled is None:
        return str(tokenizer.convert_ids_to_tokens(token))
    return spelled.decode(errors="backslashreplace")
