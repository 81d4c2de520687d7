"""Tokens to text as they come: no piece breaks a character, and nothing of a stop string is given out."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

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
