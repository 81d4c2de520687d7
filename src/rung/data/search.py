"""Find the files that paths, folders and globs name, each once and in a fixed order.

Files that rung wrote are skipped: a command that is started in the text's folder puts its runs
below it.
"""

import glob
import hashlib
import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rung.data.files import (
    PROSE_SUFFIXES,
    TABLE_SUFFIXES,
    check_file,
    has_readable_suffix,
    uncompressed_suffix,
)
from rung.data.notes import CorpusNotes, abbreviate_list, printable_path
from rung.data.sources import SPLIT_NAMES
from rung.errors import CorpusError
from rung.files import cache_folder
from rung.model_files import is_run

# The reasons to skip a file, as notes say them.
SKIPPED = "skipped {count} file{s}"
SKIPPED_LINKS = "skipped {count} linked folder{s} (name a link to read it)"
UNREADABLE_FOLDERS = "skipped {count} folder{s} without read permission"
MADE_BY_RUNG = "skipped what rung wrote"
REPORT_MARK = b'name="generator" content="rung"'
REPORT_HEAD_BYTES = 1_000  # the mark stands among them


class FileListing(NamedTuple):
    """The files to read, in a fixed order, and the paths that are skipped, with the reason."""

    files: list[Path]
    skipped: dict[Path, str]


def find_files(sources: Sequence[str]) -> FileListing:
    """Find the files that paths, folders and globs name.

    Raises `CorpusError` for a source that names none.
    """
    files: set[Path] = set()
    skipped: dict[Path, str] = {}
    for source in sources:
        found = _find_source_files(source)
        files |= set(found.files)
        skipped |= found.skipped
    unique = {path.resolve(): path for path in sorted(files, reverse=True)}
    return FileListing(
        sorted(unique.values()),
        {path: skipped[path] for path in sorted(skipped) if path not in files},
    )


def list_readable_files(folder: Path) -> FileListing:
    """List the files in a folder and its sub-folders without hidden ones; there may be none."""
    together = FileListing([], {})
    for entry in _list_visible(folder):
        found = list_entry(entry)
        together.files.extend(found.files)
        together.skipped.update(found.skipped)
    return FileListing(sorted(together.files), together.skipped)


def list_entry(entry: Path, *, follow: bool = False) -> FileListing:
    """List a file, or the files in a folder; a linked folder is entered with `follow` only."""
    if why := _reason_to_skip(entry, follow):
        return FileListing([], {entry: why})
    if not entry.is_dir():
        return FileListing([entry], {})
    found = list_readable_files(entry)
    reasons = set(found.skipped.values())
    is_made = not found.files and MADE_BY_RUNG in reasons and reasons <= {MADE_BY_RUNG, SKIPPED}
    return FileListing([], {entry: MADE_BY_RUNG}) if is_made else found


def find_split_files(sources: Sequence[str], notes: CorpusNotes) -> dict[str, list[Path]]:
    """Return split names to files, where a folder's entries or all given files are named as splits.

    Returns nothing where there is no train split. Raises `CorpusError` for a folder of held-out
    splits only.
    """
    folder = Path(sources[0]).expanduser()
    is_folder = (
        len(sources) == 1 and folder.is_dir() and _reason_to_skip(folder, follow=True) is None
    )
    entries = sorted(folder.iterdir()) if is_folder else find_files(sources).files
    entries = [entry for entry in entries if not entry.name.startswith(".") or not is_folder]
    found: dict[str, list[Path]] = {}
    named_as_split: list[Path] = []
    others: list[Path] = []
    skipped: dict[Path, str] = {}
    for entry in entries:
        name = _split_name(entry)
        listed = (
            list_entry(entry, follow=name is not None) if is_folder else FileListing([entry], {})
        )
        if name and listed.files:
            found.setdefault(name, []).extend(listed.files)
            named_as_split.append(entry)
        elif listed.files:
            others.append(entry)
        skipped |= listed.skipped if name or not listed.files else {}
    if is_folder and found and "train" not in found and not others:
        raise CorpusError(
            f"{folder} has {' and '.join(found)} but no train split: add one, or name a single file"
        )
    if "train" not in found or len(found) == 1:
        return {}
    if (others and not is_folder) or _are_named_by_chance(found, named_as_split, others):
        for path in named_as_split:
            notes.add("read like the other files, not as a split", printable_path(path))
        return {}
    for path, why in {**dict.fromkeys(others, SKIPPED), **skipped}.items():
        beside = ", beside the splits" if why == SKIPPED else ""
        notes.add(why + beside, printable_path(path))
    return found


def _are_named_by_chance(
    found: Collection[str], named_as_split: Sequence[Path], others: Sequence[Path]
) -> bool:
    """Return whether two files are named as splits by chance, among more files of their kind."""
    kinds = {uncompressed_suffix(path) for path in named_as_split}
    alike = [path for path in others if path.is_file() and uncompressed_suffix(path) in kinds]
    are_files = all(map(Path.is_file, named_as_split))
    return (
        are_files
        and len(alike) > len(named_as_split)
        and len(found) < len(set(SPLIT_NAMES.values()))
    )


def _split_name(path: Path) -> str | None:
    """Return the split that a path is named after; `train.py` and `test.py` are a program."""
    named_as_split = re.fullmatch(r"([a-z]+)(-\d+(-of-\d+)?)?", path.name.split(".")[0].lower())
    is_split = (
        named_as_split
        and uncompressed_suffix(path) != ".py"
        and (path.is_dir() or has_readable_suffix(path))
    )
    return SPLIT_NAMES.get(named_as_split[1]) if named_as_split and is_split else None


def _find_source_files(source: str) -> FileListing:
    path = Path(source).expanduser()
    if path.is_dir():
        return _find_in_folder(path, printable_path(source))
    if path.exists():
        check_file(path)
        return FileListing([path], {})
    if not glob.has_magic(source):
        raise CorpusError(f"no such file or folder: {printable_path(source)}")
    skipped: dict[Path, str] = {}
    files = [match for match in _match_pattern(str(path), skipped) if match.is_file()]
    if not files:
        beside = (
            f" (but {abbreviate_list(printable_path(p) for p in skipped)}, which is not text)"
            if skipped
            else ""
        )
        raise CorpusError(
            f"no file matches {printable_path(source)}{beside}: check the pattern, and quote it in "
            "the shell"
        )
    return FileListing(files, _merge_made_by_rung(skipped))


def _merge_made_by_rung(skipped: dict[Path, str]) -> dict[Path, str]:
    """Replace all that rung wrote by the folder that holds it.

    That folder grows while a climb reads its text again, and the note must not change.
    """
    made = [path for path, why in skipped.items() if why == MADE_BY_RUNG]
    together = Path(os.path.commonpath(made)) if made else Path()
    if not together.name:
        return skipped
    return {path: why for path, why in skipped.items() if why != MADE_BY_RUNG} | {
        together: MADE_BY_RUNG
    }


def _find_in_folder(folder: Path, shown: str) -> FileListing:
    if is_run(folder):
        command = f"`rung eval {shlex.quote(shown)}`"
        raise CorpusError(
            f"{shown} is a run, not a text: name the text itself; {command} scores the run"
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CorpusError(f"{shown} cannot be read: Permission denied")
    found = list_readable_files(folder)
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


def _match_pattern(pattern: str, skipped: dict[Path, str]) -> set[Path]:
    """Return what a pattern matches; `**` enters no links, since they may lead back."""
    parts = Path(pattern).parts
    if "**" not in parts:
        # Path.glob takes no absolute pattern, and matches hidden files.
        matches = map(Path, glob.glob(pattern))  # noqa: PTH207
        return {path for path in matches if not _lies_in_run(path, skipped)}
    at = parts.index("**")
    bases = _match_pattern(str(Path(*parts[:at])), skipped) if at else {Path()}
    rest = Path(*(parts[at + 1 :] or ("*",)))
    folders = (folder for base in bases if base.is_dir() for folder in _walk_folders(base, skipped))
    return {
        found
        for folder in folders
        for found in _match_pattern(str(Path(glob.escape(str(folder))) / rest), skipped)
    }


def _walk_folders(folder: Path, skipped: dict[Path, str]) -> Iterator[Path]:
    """Yield the folder, and those below it that are not skipped."""
    yield folder
    for entry in _list_visible(folder):
        if not entry.is_dir():
            continue
        if why := _reason_to_skip(entry):
            skipped[entry] = why
        else:
            yield from _walk_folders(entry, skipped)


def _lies_in_run(path: Path, skipped: dict[Path, str]) -> bool:
    """Return whether rung wrote the file or a folder above it, which is then noted."""
    made = (
        path if _is_file_made_by_rung(path) else next(filter(_is_made_by_rung, path.parents), None)
    )
    if made:
        skipped[made] = MADE_BY_RUNG
    return made is not None


def _list_visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _reason_to_skip(path: Path, follow: bool = False) -> str | None:
    """Return why a path inside a folder is not read; None where it is."""
    if not path.is_dir():
        readable = has_readable_suffix(path) and path.is_file()
        return (MADE_BY_RUNG if _is_file_made_by_rung(path) else None) if readable else SKIPPED
    if path.is_symlink() and not follow:
        return SKIPPED_LINKS
    if not os.access(path, os.R_OK | os.X_OK):
        return UNREADABLE_FOLDERS
    return MADE_BY_RUNG if _is_made_by_rung(path) else None


def _is_made_by_rung(folder: Path) -> bool:
    return is_run(folder) or folder.resolve() == cache_folder().resolve()


def _is_file_made_by_rung(path: Path) -> bool:
    """Return whether the file is a report, or a text that `save_stdin` named after its digest."""
    found = re.fullmatch(r"stdin-([0-9a-f]{12})\.txt", path.name)
    if not (found or path.suffix == ".html") or not path.is_file():
        return False
    with path.open("rb") as file:
        if found:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(found[1])
        return REPORT_MARK in file.read(REPORT_HEAD_BYTES)
