"""Runs to and from other tools' formats: ARPA, Hugging Face folders, and Meta's own of Llama 3."""

from collections.abc import Callable
from pathlib import Path

from rung.errors import RunError
from rung.export.arpa import export_arpa, import_arpa
from rung.export.folders import copy_folder
from rung.export.meta import export_meta, import_meta, is_meta

__all__ = ["FORMATS", "export", "import_arpa"]

FORMATS = {
    "arpa": "n-grams as text: KenLM, SRILM and what builds on them; .gz compresses it",
    "hf": "a Hugging Face folder, of a run or of a folder in Meta's format",
    "meta": "Meta's own folder of a Llama 3: params.json, consolidated.00.pth, tokenizer.model",
}


def export(run: str, format: str, out: Path) -> None:
    """Write the run at `run` to `out`: a file for ARPA, else a folder, which is there in whole or not at all.

    Weights go from disk to disk one at a time. Raises `RunError` for an unknown format, a rung that the format
    cannot hold, or a place where nothing can be written.
    """
    if format not in FORMATS:
        raise RunError(f"unknown format {format!r}: choose from {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise RunError(f"{out.parent} is no folder: make it first, or choose another place")
    write: Callable[[str, Path], None] = {"arpa": export_arpa, "meta": export_meta, "hf": _export_hf}[format]
    write(run, out)


def _export_hf(run: str, out: Path) -> None:
    (import_meta if is_meta(Path(run)) else copy_folder)(run, out)
