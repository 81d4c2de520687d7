"""The text that a run was trained on: find it where it is now, and tell it from unseen text."""

import glob
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rung import runs
from rung.data.corpus import Corpus, is_path
from rung.data.store import SPLITS
from rung.errors import CorpusError, RunError
from rung.evaluation.documents import take_texts
from rung.workflows.prepare import read_corpus

COMPARED_CHARACTERS = 2**22  # characters of a text that are looked for in the training text
MAX_SEEN = 0.5  # of the bytes: a text of which a run has seen more is no test of it


def describe_corpus_paths(corpus: str | Sequence[str], folder: Path) -> dict[str, Any]:
    """Describe for the record where the text of a run in `folder` lies.

    The paths are given in full, and relative to the run.
    """
    sources = _as_list(corpus)
    if not is_path(sources[0]):
        return {}
    paths = [os.path.abspath(os.path.expanduser(source)) for source in sources]  # noqa: PTH100, PTH111  # globs too
    try:
        return {
            "paths": paths,
            "paths_from_run": [os.path.relpath(path, folder.resolve()) for path in paths],
        }
    except ValueError:  # on another drive of Windows
        return {"paths": paths}


def describe_paths(**named: str | None) -> dict[str, str]:
    """Return the full paths of what was named by a path, or by several with commas between.

    What is no path here, such as a name on the Hub, is left out.
    """
    return {key: _expand(name) for key, name in named.items() if name and _exist(name)}


def relocate_paths(named: Mapping[str, Any], places: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a named path by its full one where the name leads elsewhere from this folder."""
    lost = {
        key: place
        for key, place in places.items()
        if isinstance(named.get(key), str) and _expand(named[key]) != place and _exist(place)
    }
    return {**named, **lost}


def _expand(name: str) -> str:
    """Return the full path of each part of a name; links stay as they are."""
    return ",".join(os.path.abspath(part) for part in _split(name))  # noqa: PTH100


def _exist(name: str) -> bool:
    return all(Path(part).exists() for part in _split(name))


def _split(name: str) -> list[str]:
    return [name] if Path(name).exists() else name.split(",")


def read_training_text(run: str, record: Mapping[str, Any], documents: str = "") -> Corpus:
    """Read the corpus that the run was trained on.

    It is looked for where it was, where it lies relative to the run, and as it was typed. Raises
    `CorpusError` when it is at none of these places.
    """
    recipe, wanted = record["recipe"], record["corpus"]["fingerprint"]
    first: Corpus | None = None
    for sources in _find_places(run, record):
        text = read_corpus(
            {**recipe, "corpus": sources, **({"documents": documents} if documents else {})}
        )
        if text.fingerprint == wanted:
            return text
        first = first or text
    if first is None:
        places = " or ".join(dict.fromkeys(", ".join(place) for place in _list_places(run, record)))
        raise CorpusError(
            f"the text that {run} was trained on is not at {places}: put it back, or name other "
            f"text, as in "
            f"`rung eval {shlex.quote(run)} FILE`"
        )
    return first


def locate_corpus(folder: Path, record: Mapping[str, Any]) -> str | list[str]:
    """Return the corpus of a run's recipe as paths that exist.

    It is returned as typed where that is the same.
    """
    typed = record["recipe"].get("corpus")
    places = _find_places(str(folder), record)
    if not places or describe_corpus_paths(typed, folder).get("paths") == places[0]:
        return typed
    return places[0][0] if len(places[0]) == 1 else places[0]


def is_training_text(
    corpus: str | Sequence[str], run: str, record: Mapping[str, Any], reading: Mapping[str, str]
) -> bool:
    """Whether a corpus is the text of the run, by its place or by its content.

    Another column or encoding of it, which `reading` names, is other text.
    """
    recipe, sources = record["recipe"], _as_list(corpus)
    for key, usual in (("column", None), ("encoding", "utf-8")):
        if reading.get(key) not in (None, recipe.get(key) or usual):
            return False
    if not is_path(sources[0]):
        return sources == _read_sources(record)
    here = [str(Path(source).expanduser().resolve()) for source in sources]
    for place in _find_places(run, record):
        if here == [str(Path(path).resolve()) for path in place]:
            return True
    try:
        found = read_corpus({**recipe, "corpus": list(sources)})
    except CorpusError:  # too little text to cut, as the run's own was
        return False
    return found.fingerprint == record["corpus"]["fingerprint"]


def measure_seen(
    collections: Iterable[Iterable[str]], own: Corpus, least_words: int = 1
) -> list[float]:
    """Return the share of each collection's bytes that are in lines of the training text.

    Lines of fewer words than `least_words` count as not seen.
    """
    found = [
        _measure_lines(take_texts(texts, COMPARED_CHARACTERS), least_words) for texts in collections
    ]
    wanted, seen = set[int]().union(*(sizes for sizes, _ in found)), set[int]()
    for text in own.sample_train(1):
        seen.update(wanted.intersection(map(hash, map(str.strip, text.splitlines()))))
    return [
        sum(sizes[line] for line in seen & sizes.keys()) / max(total, 1) for sizes, total in found
    ]


def _measure_lines(texts: Iterable[str], least_words: int) -> tuple[dict[int, int], int]:
    """Return the bytes of all equal lines, by the line's hash, and those of all lines.

    Lines that are too short have no hash there; empty lines are left out.
    """
    sizes: dict[int, int] = {}
    total = 0
    for text in texts:
        for line in filter(None, map(str.strip, text.splitlines())):
            size = len(line.encode())
            total += size
            if least_words == 1 or len(line.split()) >= least_words:
                sizes[hash(line)] = sizes.get(hash(line), 0) + size
    return sizes, total


def check_not_trained_on(
    run: str, record: Mapping[str, Any], text: Corpus, split: str
) -> float | None:
    """Return the share of the split's bytes that the run was trained on.

    It is None where the training text cannot be read. Raises `RunError` where most of the split was
    trained on, unless it is a file that was held out as such.
    """
    if text.fingerprint == record["corpus"]["fingerprint"]:
        return 0.0
    try:
        own = read_training_text(run, record)
    except CorpusError:
        return None
    (seen,) = measure_seen([text.split(split)["text"]], own)
    if seen >= MAX_SEEN and not _is_held_out(text, split, own):
        raise RunError(
            f"{run} was trained on {seen:.0%} of {text.name} (of its bytes, line by line): that "
            f"would be no score of "
            f"text it has not seen; `rung eval {shlex.quote(run)}` scores its test split, and with "
            f"--split train what "
            "it has seen"
        )
    return seen


def _is_held_out(text: Corpus, split: str, own: Corpus) -> bool:
    """Whether the split has the documents of a split that a corpus of several files holds out."""
    names = [
        name
        for name in SPLITS[1:]
        if not own.is_auto_split and own.bytes[name] == text.bytes[split]
    ]
    return any(list(own.split(name)["text"]) == list(text.split(split)["text"]) for name in names)


def _as_list(corpus: str | Sequence[str]) -> list[str]:
    return [corpus] if isinstance(corpus, str) else list(corpus)


def _read_sources(record: Mapping[str, Any]) -> list[str]:
    """Return the corpus of the run's recipe.

    Raises `RunError` where it names none.
    """
    typed = record["recipe"].get("corpus")
    sources = [typed] if isinstance(typed, str) else typed
    if (
        not isinstance(sources, list)
        or not sources
        or not all(isinstance(source, str) for source in sources)
    ):
        raise RunError(
            f"the run's record is damaged: its recipe's corpus is {typed!r}, and must be a name or "
            f"paths"
        )
    return sources


def _list_places(run: str, record: Mapping[str, Any]) -> list[list[str]]:
    """List where the text may be, the likeliest first."""
    facts, folder = record.get("corpus", {}), runs.find_run_folder(Path(run)).resolve()
    from_run = [os.path.normpath(folder / path) for path in facts.get("paths_from_run", [])]
    places = [facts.get("paths", []), from_run, _read_sources(record)]
    return [place for place in places if place]


def _find_places(run: str, record: Mapping[str, Any]) -> list[list[str]]:
    """List the places at which there is something; the name of a corpus counts."""

    def is_there(source: str) -> bool:
        path = Path(source).expanduser()
        return (
            not is_path(source)
            or path.exists()
            or (glob.has_magic(source) and bool(glob.glob(str(path))))  # noqa: PTH207
        )

    return [place for place in _list_places(run, record) if all(map(is_there, place))]
