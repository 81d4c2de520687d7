"""Errors for the mistakes of a user; each is raised once and printed as one clear line.

RungError
├── CorpusError      text that is missing, unreadable, binary, or too little
├── TokenizerError   a tokenizer that cannot be built, found or used
├── RecipeError      an unknown rung, key or value
└── RunError         a run folder that is missing, damaged or in the way
"""

import difflib
from collections.abc import Iterable
from typing import Any

# A message lists all choices up to the first number, and of more choices the second number.
MOST_NAMED = 20
FEW_NAMED = 5


class RungError(Exception):
    """A user's mistake; the message says what is wrong, the value, and the remedy."""


class CorpusError(RungError):
    """The text cannot be read, or there is too little of it."""


class TokenizerError(RungError):
    """The tokenizer cannot be built, found or used."""


class RecipeError(RungError):
    """A recipe names a rung, a key or a value that does not exist."""


class RunError(RungError):
    """A run folder is missing, damaged, or in the way."""


def did_you_mean(name: Any, choices: Iterable[str], listed: str = "") -> str:
    """Return the end of an error message: the nearest choice, or a list if none is near.

    The list has all choices or, of many, the nearest few and then `listed`, which says where to
    find the others. `name` may be any value of a recipe.
    """
    name, choices = str(name), list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if len(choices) <= MOST_NAMED:
        return f"choose from {', '.join(choices)}"
    few = ", ".join(difflib.get_close_matches(name, choices, n=FEW_NAMED, cutoff=0.0))
    return f"the nearest of {len(choices)} are {few}" + (f"; {listed}" if listed else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type where it has no message.

    If the first line ends in a colon, the second line is added.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])
