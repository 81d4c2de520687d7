"""Runs to and from other tools' formats: ARPA, which every n-gram toolkit reads."""

from pathlib import Path

from rung import __version__, runs
from rung.errors import RunError
from rung.models import count_parameters, load
from rung.models.ngram import NgramConfig, NgramForCausalLM
from rung.models.ngram.arpa import read_arpa, write_arpa

FORMATS = {"arpa": "n-grams as text: KenLM, SRILM and what builds on them; .gz compresses it"}


def export(run: str, format: str, out: Path) -> None:
    """Write the run at `run` to the file `out`.

    Raises `RunError` for an unknown format, or a rung that the format cannot hold.
    """
    if format not in FORMATS:
        raise RunError(f"unknown format {format!r}: choose from {', '.join(FORMATS)}")
    model, tokenizer = load(run)
    if not isinstance(model, NgramForCausalLM):
        raise RunError(
            f"{run} is a {model.config.model_type!r} model: ARPA holds n-grams, `rung train ngram` makes them"
        )
    if not out.parent.is_dir():
        raise RunError(f"{out.parent} is no folder: make it first, or choose another place")
    write_arpa(model, tokenizer, out)


def import_arpa(path: Path, folder: Path) -> NgramConfig:
    """Make `folder` a run of the model in an ARPA file; it has no text of its own.

    Raises `RunError` where the file is no ARPA file, or the folder cannot be written to.
    """
    model, tokenizer = read_arpa(path)
    runs.save_model(runs.make_folder(folder), model, tokenizer)
    facts = {"imported": str(path), "parameters": count_parameters(model), "versions": {"rung": __version__}}
    runs.write_record(folder, {"rung": "ngram", **facts})
    return model.config
