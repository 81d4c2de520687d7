"""Tokens to text as they come: no piece breaks a character, and nothing of a stop string is given out."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

UNFINISHED = "\ufffd"  # what bytes that are no character decode to


class Pieces:
    """The text of one continuation; `space` goes before its first piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), space: str = "") -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.ids: list[int] = []
        self.decoded = ""
        self.given = 0  # characters
        self.space = space
        self.stopped = False
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, token: int) -> str:
        """The text that is certain now that `token` is there."""
        self.ids.append(token)
        self.decoded += self._stream.step(self.tokenizer.backend_tokenizer, token) or ""
        return self._give(self._certain())

    def finish(self) -> str:
        """The rest of the text; a character that its last token only begins is left out."""
        if not self.stopped:
            whole = self.tokenizer.decode(self.ids, skip_special_tokens=True)
            self.decoded += whole[len(self.decoded) :].rstrip(UNFINISHED)
            self._certain()
        return self._give(len(self.decoded))

    @property
    def text(self) -> str:
        """All that was given out."""
        return (self.space + self.decoded[: self.given]) if self.given else ""

    def _certain(self) -> int:
        """How many characters no later token can take back: a stop string cuts the text, its beginnings wait."""
        found = (self.decoded.find(text, max(0, self.given - len(text))) for text in self.stop)
        if places := [at for at in found if at >= 0]:
            self.decoded, self.stopped = self.decoded[: min(places)], True
        if self.stopped:
            return len(self.decoded)
        waiting = (size for text in self.stop for size in range(1, len(text)) if self.decoded.endswith(text[:size]))
        return len(self.decoded) - max(waiting, default=0)

    def _give(self, end: int) -> str:
        piece = self.decoded[self.given : end]
        lead = self.space if piece and not self.given else ""
        self.given = max(self.given, end)
        return lead + piece


def spell_token(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """The bytes that a token stands for within a text; None for a special one."""
    if token in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[token].special:
        return None
    once, twice = (tokenizer.decode([token] * count) for count in (1, 2))
    text = twice.removeprefix(once)  # of the first, some tokenizers leave the space out
    symbols, numbers = tokenizer.convert_ids_to_tokens(token), {s: byte for byte, s in bytes_to_unicode().items()}
    if UNFINISHED not in text:
        return text.encode()
    if symbols[:3] == "<0x" and len(symbols) == 6:
        return bytes([int(symbols[3:5], 16)])
    return symbols.encode() if set(symbols) - numbers.keys() else bytes(numbers[symbol] for symbol in symbols)


def show_token(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    r"""A token's text; bytes of it that are only part of a character look like \xe2."""
    spelled = spell_token(tokenizer, token)
    return str(tokenizer.convert_ids_to_tokens(token)) if spelled is None else spelled.decode(errors="backslashreplace")
