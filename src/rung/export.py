"""A run in another tool's format: ARPA, which every n-gram toolkit reads."""

from pathlib import Path

from rung.errors import RunError
from rung.models import load
from rung.models.ngram import NgramForCausalLM
from rung.models.ngram.arpa import write_arpa

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
