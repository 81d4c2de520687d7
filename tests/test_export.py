"""Runs in other tools' formats."""

import os
import subprocess
import sys

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


KILLED = """
import os, signal, sys
from pathlib import Path
from rung.export.folders import writing, writing_file
write = {"folder": writing, "file": writing_file}[sys.argv[1]]
with write(Path(sys.argv[2])) as beside:
    (beside / "model.safetensors" if beside.is_dir() else beside).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("format", "kind"), [("hf", "folder"), ("arpa", "file")])
def test_what_a_kill_left_goes_with_the_next_export(format, kind, make_tiny, tokenizer, tmp_path):
    rung = {"hf": "gpt2", "arpa": "ngram"}[format]
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(rung), tokenizer)
    (tmp_path / "to").mkdir()
    out = tmp_path / "to" / f"model.{format}"
    assert subprocess.run([sys.executable, "-c", KILLED, kind, str(out)], check=False).returncode == -9
    (left,) = (tmp_path / "to").iterdir()
    assert left.name.startswith(".")
    export(str(tmp_path / "run"), format, out)
    assert list((tmp_path / "to").iterdir()) == [out]


@pytest.mark.parametrize(("format", "rung"), [("arpa", "ngram"), ("hf", "gpt2"), ("gguf", "gpt2"), ("meta", "llama3")])
def test_nothing_is_lost_and_nothing_is_left(format, rung, make_tiny, tokenizer, tmp_path, monkeypatch):
    if format == "gguf":
        pytest.importorskip("gguf", reason="gguf is not installed: pip install 'rung[export]'")
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(rung), tokenizer)
    run, place = str(tmp_path / "run"), runs.make_folder(tmp_path / "place")
    (place / "kept").write_text("kept")
    for out, said in (
        (place / "kept", "kept is (there already|a file): choose another"),
        (place, "place is (a folder: name a file in it|not empty: choose another place)"),
        (place / "none" / "model", "none is no folder: make it first"),
    ):
        with pytest.raises(RunError, match=said):
            export(run, format, out)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="place cannot be written to: choose another place"):
        export(run, format, place / "model")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("kept", "kept")]


@pytest.mark.parametrize(("format", "rung"), [("arpa", "ngram"), ("hf", "llama3"), ("meta", "llama3")])
def test_a_full_disk_is_said_in_a_line(format, rung, make_tiny, tokenizer, tmp_path, limit_files):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(rung), tokenizer)
    place = runs.make_folder(tmp_path / "place")
    with limit_files(2_000), pytest.raises(RunError, match="place could not be written to .*: make room there"):
        export(str(tmp_path / "run"), format, place / "model")
    assert not list(place.iterdir())


@pytest.mark.parametrize(("record", "verb"), [({}, "train"), ({"tune": {}}, "tune")])
def test_a_run_that_was_stopped_says_how_it_goes_on(record, verb, tmp_path):
    runs.make_folder(tmp_path / "run" / "checkpoints")
    runs.write_record(tmp_path / "run", {"rung": "gpt2", **record})
    for format in ("hf", "gguf", "arpa"):
        with pytest.raises(RunError, match=f"run is not finished: go on with `rung {verb} --out .*run --resume` first"):
            export(str(tmp_path / "run"), format, tmp_path / "model")
