"""A chat with a model: the messages so far, as many of them as fit the context, and the answer."""

import json
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rung.chat.conversations import read_conversation
from rung.chat.template import Conversation, encode_prompt, find_chat_stop_ids
from rung.errors import CorpusError, RunError, RungError
from rung.files import write_atomically
from rung.generation.decoder import Decoder
from rung.generation.generate import Generation, generate_from_ids
from rung.generation.sampling import Sampling


def drop_oldest_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, window: int | None, wanted: int
) -> tuple[Conversation, int, list[int]]:
    """Drop the oldest turns until `wanted` tokens of an answer fit behind the prompt.

    Returns the conversation that is left, the number of turns dropped, and the prompt. At most a
    quarter of the window is kept for the answer. The text before the first question is never
    dropped. Raises `RunError` where the last question alone leaves no room.
    """
    asked = [i for i, message in enumerate(messages) if message["role"] == "user"]

    def write(turns: int) -> tuple[Conversation, list[int]]:
        kept = [*messages[: asked[0]], *messages[asked[turns] :]] if turns else messages
        return kept, encode_prompt(tokenizer, kept)

    def fits(turns: int) -> bool:
        return window is None or len(write(turns)[1]) + min(wanted, window // 4) <= window

    most = max(0, len(asked) - 1)
    dropped = _find_fewest(most, fits)
    kept, ids = write(min(dropped, most))
    if dropped > most:
        what = (
            "the question has" if len(kept) == 1 else "the question and what stands before it have"
        )
        raise RunError(
            f"{what} {len(ids)} tokens, and the model looks at {window}, answer and all: use "
            "fewer words"
        )
    return kept, dropped, ids


def _find_fewest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the fewest turns to drop so that the rest fits; `most` + 1 where nothing does.

    Each try keeps twice as many turns, so that turns far beyond the window are never encoded.
    """
    kept, enough = 1, most + 1
    while enough and fits(max(0, most + 1 - kept)):
        enough = max(0, most + 1 - kept)
        kept *= 2
    first = min(enough, max(0, most + 1 - kept) + 1)
    return bisect_left(range(enough), True, lo=first, key=fits)


@dataclass
class ChatSession:
    """A chat as it goes on; `system` is its system message, which is never dropped."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    system: str = ""
    messages: Conversation = field(default_factory=list)
    dropped: int = 0  # turns that the last prompt left out

    def answer(
        self, question: str, sampling: Sampling, on_text: Callable[[str], None] = lambda text: None
    ) -> Generation:
        """Answer a question; `on_text` is called with each piece of the answer.

        An answer that is interrupted is kept as far as it got. Raises `RunError` for a question
        that leaves no room for an answer.
        """
        self.messages.append({"role": "user", "content": question})
        said: list[str] = []

        def hear(text: str) -> None:
            said.append(text)
            on_text(text)

        try:
            ids = self.build_prompt(sampling.max_new_tokens)
            stop_ids = find_chat_stop_ids(self.decoder.model, self.tokenizer)
            made = generate_from_ids(self.decoder, self.tokenizer, [ids], sampling, stop_ids, hear)[
                0
            ]
        except RungError:
            self.messages.pop()
            raise
        except KeyboardInterrupt:
            self.messages.append({"role": "assistant", "content": "".join(said)})
            raise
        self.messages.append({"role": "assistant", "content": made.text})
        return made

    def build_prompt(self, wanted: int) -> list[int]:
        """Build the prompt, without the oldest turns where `wanted` tokens would not fit."""
        window = self.decoder.model.context_length
        kept, self.dropped, ids = drop_oldest_turns(
            self.tokenizer, [*self._opening(), *self.messages], window, wanted
        )
        self.messages = kept[len(self._opening()) :]
        return ids

    def _opening(self) -> Conversation:
        return [{"role": "system", "content": self.system}] if self.system else []

    def save(self, path: Path) -> None:
        """Write the chat as one line of JSON with `messages`, as `rung tune` reads it."""
        write_atomically(
            path,
            json.dumps({"messages": [*self._opening(), *self.messages]}, ensure_ascii=False) + "\n",
        )

    def load(self, path: Path) -> None:
        """Continue a chat that `save` wrote.

        Raises `CorpusError` where the file is no conversation.
        """
        try:
            said = read_conversation(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError) as error:
            raise CorpusError(
                f"{path} is no conversation that can be continued: {error}"
            ) from error
        self.system = said.pop(0)["content"] if said[0]["role"] == "system" else ""
        self.messages = said
