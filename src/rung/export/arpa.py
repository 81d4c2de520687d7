"""N-grams to and from ARPA files."""

from pathlib import Path

from rung import __version__, runs
from rung.errors import RunError
from rung.export.folders import writing_file
from rung.models import count_parameters, load
from rung.models.ngram import NgramConfig, NgramForCausalLM
from rung.models.ngram.arpa import read_arpa, write_arpa


def export_arpa(run: str, out: Path) -> None:
    """Write the n-grams of the run at `run` to the file `out`.

    Raises `RunError` for another rung, and when something would be lost.
    """
    model, tokenizer = load(run)
    if not isinstance(model, NgramForCausalLM):
        raise RunError(
            f"{run} is a {model.config.model_type!r} model: ARPA holds n-grams, `rung train ngram` makes them"
        )
    with writing_file(out) as beside:
        write_arpa(model, tokenizer, beside)


def import_arpa(path: Path, folder: Path) -> NgramConfig:
    """Make `folder` a run of the model in an ARPA file; it has no text of its own.

    Raises `RunError` where the file is no ARPA file, or the folder cannot be written to.
    """
    model, tokenizer = read_arpa(path)
    with runs.hold(folder), runs.undo_failed_start(folder):
        runs.save_model(runs.make_folder(folder), model, tokenizer)
        facts = {"imported": str(path), "parameters": count_parameters(model), "versions": {"rung": __version__}}
        runs.write_record(folder, {"rung": "ngram", **facts})
    return model.config
