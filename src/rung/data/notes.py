"""Notes on a corpus: what reading it decided, cut or skipped, for the user and for the record."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

MAX_NAMED_FILES = 2  # a note names so many files and counts the others


@dataclass
class _Note:
    count: int = 0
    files: dict[str, None] = field(default_factory=dict)  # a set that keeps its order


class CorpusNotes:
    """Notes by message; files with the same message share one note."""

    def __init__(self) -> None:
        self.notes: dict[str, _Note] = {}

    def add(self, message: str, path: str, count: int = 1) -> None:
        """Add `message` about the file `path`.

        `{count}` in the message becomes the sum of the counts, `{s}` an "s" unless that is 1.
        """
        note = self.notes.setdefault(message, _Note())
        note.count += count
        note.files[path] = None

    def lines(self) -> list[str]:
        """Return one line for each message, with the names of its first files."""
        return [
            message.replace("{count}", f"{note.count:,}").replace(
                "{s}", "" if note.count == 1 else "s"
            )
            + f": {abbreviate_list(Path(path).name for path in note.files)}"
            for message, note in self.notes.items()
        ]


@dataclass(frozen=True)
class LoadingNotes:
    """Notes of finding the files, and of reading each list of files the last time."""

    finding: CorpusNotes = field(default_factory=CorpusNotes)
    reading: dict[str, CorpusNotes] = field(default_factory=dict)


def merge_notes(several: Iterable[CorpusNotes]) -> list[str]:
    """Return the lines of all notes, those with the same message added up."""
    merged = CorpusNotes()
    for notes in several:
        for message, note in notes.notes.items():
            for path in note.files:
                merged.add(message, path, 0)
            merged.notes[message].count += note.count
    return merged.lines()


def abbreviate_list(names: Iterable[str]) -> str:
    """Join the first names, and say how many more there are."""
    names = list(names)
    shown = names if len(names) <= MAX_NAMED_FILES + 1 else names[:MAX_NAMED_FILES]
    if len(shown) < len(names):
        return f"{', '.join(shown)} and {len(names) - len(shown):,} more"
    return ", ".join(shown)


def printable_path(path: Path | str) -> str:
    """Return the path with U+FFFD in the place of bytes that are not UTF-8."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
