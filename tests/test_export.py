"""Runs in other tools' formats."""

import pytest

from rung import runs
from rung.errors import RunError
from rung.export import export
from rung.models.ngram.arpa import read_arpa


def test_an_ngram_run_becomes_an_arpa_file(make_tiny, tokenizer, tmp_path):
    model = make_tiny("ngram")
    runs.save_model(runs.make_folder(tmp_path / "run"), model, tokenizer)
    export(str(tmp_path / "run"), "arpa", tmp_path / "model.arpa")
    again, _ = read_arpa(tmp_path / "model.arpa")
    assert again.config.num_ngrams[1:] == model.config.num_ngrams[1:]


def test_what_cannot_be_exported_is_refused(make_tiny, tokenizer, tmp_path):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny("rnn"), tokenizer)
    with pytest.raises(RunError, match="ARPA holds n-grams"):
        export(str(tmp_path / "run"), "arpa", tmp_path / "model.arpa")
    with pytest.raises(RunError, match="unknown format 'onnx'"):
        export(str(tmp_path / "run"), "onnx", tmp_path / "model.onnx")
