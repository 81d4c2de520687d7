"""The options that several functions share: corpora, tokenizers, folders, progress."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rung.data.tokenizer_training import TOKENIZERS
from rung.errors import RecipeError, did_you_mean

RUNS = Path("runs")  # where a run goes whose folder is not named

CorpusName = str | Path | Iterable[str | Path] | None


def name_corpus(corpus: CorpusName) -> str | list[str]:
    """The name or the paths of a corpus as strings; "" where none is named."""
    if corpus is None or isinstance(corpus, str | Path):
        return str(corpus or "")
    names = [str(each) for each in corpus]
    return names[0] if len(names) == 1 else names


def name_tokenizer(tokenizer: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's `tokenizer` for the name of a kind, or for a folder."""
    if isinstance(tokenizer, Mapping):
        return dict(tokenizer)
    name = str(tokenizer)
    return {"kind": name} if name in TOKENIZERS or not Path(name).exists() else {"path": name}


def name_folder(corpus: str | Sequence[str], *parts: str) -> Path:
    """The folder that a run on this corpus goes to where none is named."""
    return RUNS / "-".join((_slug(corpus), *parts))


def name_pairs(pairs: str | Path | None) -> str | None:
    """Return the path of minimal pairs as text. Raises `RecipeError` for an empty one."""
    if pairs == "":
        raise RecipeError(
            "--pairs is an empty text, as of a variable that is not set: name a file or a folder"
        )
    return None if pairs is None else str(pairs)


def read_set(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `set` of a function's settings; empty where it is not there.

    Raises `RecipeError` for what is no mapping, such as the command's list of key=value.
    """
    given = settings.get("set") or {}
    if not isinstance(given, Mapping):
        raise RecipeError(
            f"set is {given!r}: a mapping is wanted, such as {{'train.learning_rate': 1e-3}}"
        )
    return dict(given)


def check_options(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise `RecipeError` for an option that a function of the library does not have."""
    for name in given:
        if name not in known:
            raise RecipeError(
                f"rung.{function} has no option {name!r}: {did_you_mean(name, known)}"
            )


def check_not_given(what: str, options: Mapping[str, Any]) -> None:
    """Raise `RecipeError`, after `what`, where one of the options was given."""
    given = [name for name, value in options.items() if value not in (None, "", [], {})]
    if given:
        raise RecipeError(f"{what} {', '.join(given)}: leave it out")


def _slug(corpus: str | Sequence[str]) -> str:
    """A corpus as a part of a folder's name, without characters that are not UTF-8."""
    if not isinstance(corpus, str):
        return _slug(corpus[0]) + (f"-and-{len(corpus) - 1}-more" if len(corpus) > 1 else "")
    path = Path(corpus).expanduser()
    if path.exists():
        path = path.resolve()
        name = path.parent.name if path.name == "train" else path.name
        return name.encode(errors="replace").decode().split(".")[0].replace("?", "_") or "text"
    name = corpus.encode(errors="replace").decode().removeprefix("hf:")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-") or "text"
