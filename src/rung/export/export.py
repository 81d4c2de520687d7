"""Write runs in other tools' formats, and read them back: ARPA, GGUF, Hugging Face, Meta's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rung.errors import RunError
from rung.export.arpa import export_arpa, import_arpa
from rung.export.gguf import export_gguf
from rung.export.hf import copy_folder
from rung.export.meta import export_meta, import_meta, is_meta
from rung.files import check_writable
from rung.model_files import check_folder

FORMATS = {
    "arpa": "n-grams as text: KenLM, SRILM and what builds on them; .gz compresses it",
    "gguf": "one file of a GPT-2 or Llama 3: llama.cpp, Ollama, LM Studio",
    "hf": "a Hugging Face folder: of a run, of a folder in Meta's format, of an ARPA file",
    "meta": "Meta's own folder of a Llama 3: params.json, consolidated.00.pth, tokenizer.model",
}


def export(run: str, format: str, out: Path, type: str = "") -> str | None:
    """Write the run at `run` to `out`: a file for ARPA and GGUF, else a folder.

    It is there in whole or not at all. Weights go from disk to disk one at a time. `type` is how
    GGUF stores matrices: f32, f16 or q8_0. Returns a line about what was written, if there is
    something to say. Raises `RunError` for an unknown format, a rung that the format cannot hold,
    and a place where nothing can be written.
    """
    if format not in FORMATS:
        raise RunError(f"unknown format {format!r}: choose from {', '.join(FORMATS)}")
    if type and format != "gguf":
        raise RunError(
            f"--type is {type!r}, but {format} stores weights as they are: leave it out, or name "
            f"--to gguf"
        )
    check_writable(out)
    if Path(run).is_dir() and out.resolve().is_relative_to(Path(run).resolve()):
        raise RunError(
            f"{out} is in {run}, which an export leaves as it is: choose a place outside of it"
        )
    writers: dict[str, Callable[[str, Path], str | None]] = {
        "arpa": export_arpa,
        "gguf": partial(export_gguf, type=type or "f16"),
        "hf": _export_hf,
        "meta": export_meta,
    }
    return writers[format](run, out)


def _export_hf(run: str, out: Path) -> str | None:
    if Path(run).is_file():
        return import_arpa(Path(run), out)
    if Path(run).is_dir():
        check_folder(Path(run))
    (import_meta if is_meta(Path(run)) else copy_folder)(run, out)
    return None
