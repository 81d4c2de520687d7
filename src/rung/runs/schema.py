"""What a run's record must look like where it is read: of which kind each part is that somebody
computes with.

What is not named here may be anything, and any part may be missing: an imported run has few, a
failed one fewer.
"""

from typing import Any

ANY = "*"  # the key that stands for those not named
NUMBER = (int, float)
COUNT = (int,)
COST = (int, float, type(None))  # an infinite one is null
TEXT, FLAG = (str,), (bool,)

SCORE_SCHEMA = {
    **dict.fromkeys(
        ("documents", "bytes", "words", "tokens", "unknown_words", "dropped_bytes"), COUNT
    ),
    **dict.fromkeys(
        ("bits_per_byte", "low", "high", "word_perplexity", "token_perplexity", "nats"), COST
    ),
    **dict.fromkeys(("unknown_nats", "dropped_nats", "window", "stride"), COST),
    **dict.fromkeys(("log10_word_perplexity", "log10_token_perplexity", "seconds"), COST),
    "lost": [TEXT],
    "renormalized": FLAG,
}
RECORD_SCHEMA = {
    **dict.fromkeys(("rung", "failed", "imported", "hardware"), TEXT),
    **dict.fromkeys(("prompt", "sample"), (str, type(None))),
    "parameters": COUNT,
    "recipe": {},
    "batches": [{"from_step": COUNT, "global_batch_size": COUNT}],
    "corpus": {
        **dict.fromkeys(("name", "fingerprint"), TEXT),
        "documents": {ANY: COUNT},
        "bytes": {ANY: COUNT},
        "notes": [TEXT],
        "paths": [TEXT],
        "paths_from_run": [TEXT],
    },
    "tokenizer": {"kind": TEXT, "fingerprint": TEXT, "vocab_size": COUNT, "lost": [TEXT]},
    "training": dict.fromkeys(
        ("seconds", "steps", "tokens", "tokens_per_second", "cpu_share", "cores"), NUMBER
    ),
    "scores": {"test": SCORE_SCHEMA},
    "marks": {ANY: NUMBER},
    "passage": [(TEXT, COST)],
    "plan": {},
    "places": {ANY: TEXT},
    "versions": {},
    "base": {},
    "tune": {"plan": {}},
}
KIND_NAMES = {
    int: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def find_schema_error(value: Any, kind: Any = RECORD_SCHEMA, where: str = "") -> str | None:
    """The first part that is of another kind than it must be, as the end of a sentence; None where
    all fit.
    """
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return _say(where, value, dict)
        parts = [
            (part, kind.get(key, kind.get(ANY)), f"{where}.{key}".strip("."))
            for key, part in value.items()
        ]
    elif isinstance(kind, list):
        if not isinstance(value, list):
            return _say(where, value, list)
        parts = [(part, kind[0], f"{where}[{place}]") for place, part in enumerate(value)]
    elif isinstance(kind[0], tuple):
        if not isinstance(value, list) or len(value) != len(kind):
            return f"{where} is {value!r:.40}, and must be a list of {len(kind)}"
        parts = [
            (part, each, f"{where}[{place}]")
            for place, (part, each) in enumerate(zip(value, kind, strict=True))
        ]
    else:
        return None if isinstance(value, kind) else _say(where, value, kind[0])
    known = (
        find_schema_error(part, each, place) for part, each, place in parts if each is not None
    )
    return next(filter(None, known), None)


def _say(where: str, value: Any, kind: type) -> str:
    return f"{where or 'it'} is {value!r:.40}, and must be {KIND_NAMES[kind]}"
