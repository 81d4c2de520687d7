"""The mistakes a user can make, each raised once and printed as one clear line.

RungError
├── CorpusError      text that is missing, unreadable, binary, or too little
├── TokenizerError   a tokenizer that cannot be built, found or used
├── RecipeError      an unknown rung, key or value
└── RunError         a run folder that is missing, damaged or in the way
"""

import difflib
from collections.abc import Iterable
from typing import Any

MOST_NAMED = 20  # choices that a message lists
FEW_NAMED = 5  # of more


class RungError(Exception):
    """A user's mistake: says what is wrong, the value, and the remedy."""


class CorpusError(RungError):
    """The text cannot be read, or there is too little of it."""


class TokenizerError(RungError):
    """The tokenizer cannot be built, found or used."""


class RecipeError(RungError):
    """A recipe names a rung, a key or a value that does not exist."""


class RunError(RungError):
    """A run folder is missing, damaged, or in the way."""


def did_you_mean(name: Any, choices: Iterable[str], listed: str = "") -> str:
    """The end of an error message: the nearest choice; when none is near all of them, or of many a
    few.

    `listed` says where many are listed. The name may be anything that a recipe holds.
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
    """The first line of an error's message, or its name where it has none.

    A first line that ends in a colon brings the second.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])
