"""The limits of a server: how much it takes on, and whom it answers."""

from dataclasses import dataclass

from rung.errors import RecipeError
from rung.serve.access import parse_api_key


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Settings of a server. Raises `RecipeError` for one that is out of range."""

    max_batch: int = 16  # texts that a model continues together
    max_queue: int = 64  # texts that wait for that
    max_body_bytes: int = 1_000_000
    max_prompt_tokens: int = 8192
    max_tokens: int = 4096  # of an answer
    max_choices: int = 8  # answers to one prompt
    seconds: float = 300.0  # for an answer, waiting included
    body_seconds: float = 30.0  # for a request to arrive
    api_key: str | None = None  # None: no key is asked for
    hosts: tuple[str, ...] = ()  # host names that it answers to; empty: any
    origins: tuple[str, ...] = ()  # other pages that may ask, as https://example.org; * for all

    def __post_init__(self) -> None:
        for name in (
            "max_batch",
            "max_body_bytes",
            "max_prompt_tokens",
            "max_tokens",
            "max_choices",
            "seconds",
        ):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be more than 0")
        if self.max_queue < 0:
            raise RecipeError(f"max_queue is {self.max_queue}: it must be 0 or more")
        if self.api_key is not None and self.api_key != parse_api_key(self.api_key):
            raise RecipeError(
                "api_key begins or ends with white space, which no header can: strip it"
            )
