"""Notes on what reading a corpus settled, cut or passed over by itself: shown to the user, and kept
in the record.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

NAMED = 2  # files that a note names before it only counts


@dataclass
class _Note:
    count: int = 0
    files: dict[str, None] = field(default_factory=dict)  # a set that keeps its order


class CorpusNotes:
    """What was noticed of which files; of many files alike the note is one."""

    def __init__(self) -> None:
        self.notes: dict[str, _Note] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Note `what` of the file `where`; `{count}` in it becomes the sum over the files, `{s}` a
        plural's s.
        """
        note = self.notes.setdefault(what, _Note())
        note.count += count
        note.files[where] = None

    def lines(self) -> list[str]:
        """A line for each note, which names the first files and counts the others."""
        return [
            what.replace("{count}", f"{note.count:,}").replace(
                "{s}", "" if note.count == 1 else "s"
            )
            + f": {abbreviate_list(Path(where).name for where in note.files)}"
            for what, note in self.notes.items()
        ]


def merge_notes(many: Iterable[CorpusNotes]) -> list[str]:
    """The lines of all notes together."""
    together = CorpusNotes()
    for notes in many:
        for what, note in notes.notes.items():
            for where in note.files:
                together.add(what, where, 0)
            together.notes[what].count += note.count
    return together.lines()


def abbreviate_list(names: Iterable[str]) -> str:
    """The first names, and how many there are beside them."""
    names = list(names)
    shown = names if len(names) <= NAMED + 1 else names[:NAMED]
    if len(shown) < len(names):
        return f"{', '.join(shown)} and {len(names) - len(shown):,} more"
    return ", ".join(shown)


def printable_path(path: Path | str) -> str:
    """A path as it can be printed: bytes that are not UTF-8 have a sign in their place."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
