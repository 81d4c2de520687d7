"""Check the types of the values in a run's record.

A key that the schema does not name may hold anything, and any key may be missing: the record of an
imported run has few keys, and that of a failed run has fewer.
"""

from typing import Any

# This key stands for all keys that are not named.
_ANY = "*"
_NUMBER = (int, float)
_COUNT = (int,)
# The record stores an infinite cost as null.
_COST = (int, float, type(None))
_TEXT, _FLAG = (str,), (bool,)

SCORE_SCHEMA = {
    **dict.fromkeys(
        ("documents", "bytes", "words", "tokens", "unknown_words", "dropped_bytes"), _COUNT
    ),
    **dict.fromkeys(
        ("bits_per_byte", "low", "high", "word_perplexity", "token_perplexity", "nats"), _COST
    ),
    **dict.fromkeys(("unknown_nats", "dropped_nats", "window", "stride"), _COST),
    **dict.fromkeys(("log10_word_perplexity", "log10_token_perplexity", "seconds"), _COST),
    "lost": [_TEXT],
    **dict.fromkeys(("renormalized", "has_bos", "end_scored"), _FLAG),
    "dtype": _TEXT,
}
ACCURACY_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("accuracy", "low", "high"), _NUMBER),
    **dict.fromkeys(("pairs", "ties"), _COUNT),
    **dict.fromkeys(("phenomenon", "paradigm"), _TEXT),
}
NOVELTY_SCHEMA: dict[str, Any] = {
    "new": {_ANY: _COST},
    **dict.fromkeys(("new_share", "low", "high", "repeated"), _COST),
    **dict.fromkeys(("texts", "words", "longest"), _COUNT),
    "longest_text": _TEXT,
}
RECORD_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("rung", "failed", "imported", "hardware"), _TEXT),
    **dict.fromkeys(("prompt", "sample"), (str, type(None))),
    "parameters": _COUNT,
    "recipe": {},
    "batches": [{"from_step": _COUNT, "global_batch_size": _COUNT}],
    "corpus": {
        **dict.fromkeys(("name", "fingerprint"), _TEXT),
        "documents": {_ANY: _COUNT},
        "bytes": {_ANY: _COUNT},
        "notes": [_TEXT],
        "paths": [_TEXT],
        "paths_from_run": [_TEXT],
    },
    "tokenizer": {"kind": _TEXT, "fingerprint": _TEXT, "vocab_size": _COUNT, "lost": [_TEXT]},
    "training": dict.fromkeys(
        ("seconds", "steps", "tokens", "tokens_per_second", "cpu_share", "cores"), _NUMBER
    ),
    "scores": {"test": SCORE_SCHEMA},
    "pairs": {
        **dict.fromkeys(("name", "fingerprint"), _TEXT),
        **ACCURACY_SCHEMA,
        "spelled": _COUNT,
        "renormalized": _FLAG,
        "phenomena": [ACCURACY_SCHEMA],
        "paradigms": [ACCURACY_SCHEMA],
    },
    "marks": {_ANY: _NUMBER},
    "novelty": {
        **dict.fromkeys(("unit", "corpus"), _TEXT),
        **dict.fromkeys(("texts", "tokens", "nearest"), _COUNT),
        "human": NOVELTY_SCHEMA,
        "settings": [
            {
                **NOVELTY_SCHEMA,
                **dict.fromkeys(("temperature", "top_p"), _NUMBER),
                "distance": _COST,
                "verdict": _TEXT,
            }
        ],
        "crossings": {_ANY: _COST},
    },
    "passage": [(_TEXT, _COST)],
    "plan": {},
    "places": {_ANY: _TEXT},
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
    """Return a message about the first value of a wrong type, or None where all types fit."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return _say(where, value, dict)
        parts = [
            (part, kind.get(key, kind.get(_ANY)), f"{where}.{key}".strip("."))
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
