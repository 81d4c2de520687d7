"""Which files paths, folders and globs name: each of them once, in a fixed order; what is passed
over says why.

What rung made is no text: its runs lie below the text's own folder where a command is started
there.
"""

import glob
import hashlib
import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rung.data.files import PROSE_SUFFIXES, TABLE_SUFFIXES, is_readable_kind, uncompressed_suffix
from rung.data.notes import CorpusNotes, abbreviate_list, printable_path
from rung.data.sources import SPLIT_NAMES
from rung.device import cache_folder
from rung.errors import CorpusError
from rung.model_files import is_run

UNREADABLE = "skipped {count} file{s}"  # as notes say it
LINKED = "skipped {count} linked folder{s}, to be named to be read"
SHUT = "skipped {count} folder{s} that may not be read"
MADE = "left out what rung made"
REPORT, OPENING_BYTES = b'name="generator" content="rung"', 1_000  # how a report begins


class FileListing(NamedTuple):
    """The files that were meant, in a fixed order, and what beside them is passed over, with the
    reason.
    """

    files: list[Path]
    skipped: dict[Path, str]


def find_files(sources: Sequence[str]) -> FileListing:
    """The files that paths, folders and globs name.

    Raises `CorpusError` for one that names none.
    """
    files: set[Path] = set()
    skipped: dict[Path, str] = {}
    for source in sources:
        found = _find_files(source)
        files |= set(found.files)
        skipped |= found.skipped
    unique = {path.resolve(): path for path in sorted(files, reverse=True)}
    return FileListing(
        sorted(unique.values()),
        {path: skipped[path] for path in sorted(skipped) if path not in files},
    )


def list_text_files(folder: Path) -> FileListing:
    """The files in a folder and its sub-folders, hidden ones left out; perhaps none."""
    together = FileListing([], {})
    for entry in _visible(folder):
        found = list_entry(entry)
        together.files.extend(found.files)
        together.skipped.update(found.skipped)
    return FileListing(sorted(together.files), together.skipped)


def list_entry(entry: Path, *, follow: bool = False) -> FileListing:
    """A file, or the files in a folder; a link to a folder is entered where that is asked for."""
    if why := _why_not(entry, follow):
        return FileListing([], {entry: why})
    if not entry.is_dir():
        return FileListing([entry], {})
    found = list_text_files(entry)
    reasons = set(found.skipped.values())
    is_made = not found.files and MADE in reasons and reasons <= {MADE, UNREADABLE}
    return FileListing([], {entry: MADE}) if is_made else found


def find_split_files(sources: Sequence[str], notes: CorpusNotes) -> dict[str, list[Path]]:
    """Split names to files, where a folder's entries are called so, or all the files that are named
    are.
    """
    folder = Path(sources[0]).expanduser()
    is_folder = len(sources) == 1 and folder.is_dir() and _why_not(folder, follow=True) is None
    entries = sorted(folder.iterdir()) if is_folder else find_files(sources).files
    entries = [entry for entry in entries if not entry.name.startswith(".") or not is_folder]
    found: dict[str, list[Path]] = {}
    named_so: list[Path] = []
    others: list[Path] = []
    skipped: dict[Path, str] = {}
    for entry in entries:
        name = _split_name(entry)
        listed = (
            list_entry(entry, follow=name is not None) if is_folder else FileListing([entry], {})
        )
        if name and listed.files:
            found.setdefault(name, []).extend(listed.files)
            named_so.append(entry)
        elif listed.files:
            others.append(entry)
        skipped |= listed.skipped if name or not listed.files else {}
    if is_folder and found and "train" not in found and not others:
        raise CorpusError(
            f"{folder} has {' and '.join(found)} but no train split: add one, or name a single file"
        )
    if "train" not in found or len(found) == 1:
        return {}
    if (others and not is_folder) or _are_among_others(found, named_so, others):
        for path in named_so:
            notes.add("read like the others beside, and not as a split", printable_path(path))
        return {}
    for path, why in {**dict.fromkeys(others, UNREADABLE), **skipped}.items():
        beside = ", beside the splits" if why == UNREADABLE else ""
        notes.add(why + beside, printable_path(path))
    return found


def _are_among_others(
    found: Collection[str], named_so: Sequence[Path], others: Sequence[Path]
) -> bool:
    """Whether two files are called after splits by chance: more files of their kind stand beside
    them.
    """
    kinds = {uncompressed_suffix(path) for path in named_so}
    alike = [path for path in others if path.is_file() and uncompressed_suffix(path) in kinds]
    are_files = all(map(Path.is_file, named_so))
    return are_files and len(alike) > len(named_so) and len(found) < len(set(SPLIT_NAMES.values()))


def _split_name(path: Path) -> str | None:
    """The split that a file or folder is called after; `train.py` and `test.py` are a program."""
    named_so = re.fullmatch(r"([a-z]+)(-\d+(-of-\d+)?)?", path.name.split(".")[0].lower())
    is_split = (
        named_so
        and uncompressed_suffix(path) != ".py"
        and (path.is_dir() or is_readable_kind(path))
    )
    return SPLIT_NAMES.get(named_so[1]) if named_so and is_split else None


def _find_files(source: str) -> FileListing:
    path = Path(source).expanduser()
    if path.is_dir():
        return _find_in_folder(path, printable_path(source))
    if path.is_file():
        return FileListing([path], {})
    if path.exists():
        raise CorpusError(
            f"{printable_path(source)} is no file that can be read twice: write what it gives to a "
            "file"
        )
    if not glob.has_magic(source):
        raise CorpusError(f"no such file or folder: {printable_path(source)}")
    skipped: dict[Path, str] = {}
    files = [match for match in _match(str(path), skipped) if match.is_file()]
    if not files:
        beside = (
            f" (but {abbreviate_list(printable_path(p) for p in skipped)}, which is no text)"
            if skipped
            else ""
        )
        raise CorpusError(
            f"no file matches {printable_path(source)}{beside}: check the pattern, and quote it in "
            "the shell"
        )
    return FileListing(files, _join_made(skipped))


def _join_made(skipped: dict[Path, str]) -> dict[Path, str]:
    """The folder in which all lies that rung made in the place of that: it grows while a climb
    reads its text again.
    """
    made = [path for path, why in skipped.items() if why == MADE]
    together = Path(os.path.commonpath(made)) if made else Path()
    if not together.name:
        return skipped
    return {path: why for path, why in skipped.items() if why != MADE} | {together: MADE}


def _find_in_folder(folder: Path, shown: str) -> FileListing:
    if is_run(folder):
        command = f"`rung eval {shlex.quote(shown)}`"
        raise CorpusError(
            f"{shown} is a run, no text: name the text itself; {command} scores the run"
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CorpusError(f"{shown} cannot be read: Permission denied")
    found = list_text_files(folder)
    if not found.files:
        kinds = " ".join((*PROSE_SUFFIXES, *TABLE_SUFFIXES))
        beside = (
            f"; it has {abbreviate_list(printable_path(p.name) for p in found.skipped)}"
            if found.skipped
            else ""
        )
        raise CorpusError(
            f"{shown} has no file that can be read: it should hold {kinds}, source code, or these "
            f"as .gz or "
            f".zst{beside}"
        )
    return found


def _match(pattern: str, skipped: dict[Path, str]) -> set[Path]:
    """What a pattern matches; `**` enters no link, for two that lead back would be followed without
    end.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return {path for path in map(Path, glob.glob(pattern)) if not _lies_in_run(path, skipped)}  # noqa: PTH207  # Path.glob takes no absolute pattern, and hidden files
    at = parts.index("**")
    bases = _match(str(Path(*parts[:at])), skipped) if at else {Path()}
    rest = Path(*(parts[at + 1 :] or ("*",)))
    folders = (folder for base in bases if base.is_dir() for folder in _walk(base, skipped))
    return {
        found
        for folder in folders
        for found in _match(str(Path(glob.escape(str(folder))) / rest), skipped)
    }


def _walk(folder: Path, skipped: dict[Path, str]) -> Iterator[Path]:
    """The folder, and those below it that are entered."""
    yield folder
    for entry in _visible(folder):
        if not entry.is_dir():
            continue
        if why := _why_not(entry):
            skipped[entry] = why
        else:
            yield from _walk(entry, skipped)


def _lies_in_run(path: Path, skipped: dict[Path, str]) -> bool:
    """Whether the path is in a folder that rung made, which is noted then, or a text that it
    kept.
    """
    made = path if _is_made_file(path) else next(filter(_is_made, path.parents), None)
    if made:
        skipped[made] = MADE
    return made is not None


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _why_not(path: Path, follow: bool = False) -> str | None:
    """Why a file or folder that is met is not read; None where it is."""
    if not path.is_dir():
        readable = is_readable_kind(path) and path.is_file()
        return (MADE if _is_made_file(path) else None) if readable else UNREADABLE
    if path.is_symlink() and not follow:
        return LINKED
    if not os.access(path, os.R_OK | os.X_OK):
        return SHUT
    return MADE if _is_made(path) else None


def _is_made(folder: Path) -> bool:
    return is_run(folder) or folder.resolve() == cache_folder().resolve()


def _is_made_file(path: Path) -> bool:
    """Whether it is a text that `save_stdin` wrote, which is called after its content, or a
    report.
    """
    found = re.fullmatch(r"stdin-([0-9a-f]{12})\.txt", path.name)
    if not (found or path.suffix == ".html") or not path.is_file():
        return False
    with path.open("rb") as file:
        if found:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(found[1])
        return REPORT in file.read(OPENING_BYTES)
