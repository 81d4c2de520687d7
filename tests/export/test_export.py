"""Runs in other tools' formats."""

import os
from pathlib import Path

import pytest

from rung import model_files, runs
from rung.errors import RunError, RungError
from rung.export.arpa import read_arpa
from rung.export.export import export
from rung.models import load
from rung.workflows.verify_resume import read_source
from tests.conftest import TINY


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
from rung.export.hf import write_folder, write_file
write = {"folder": write_folder, "file": write_file}[sys.argv[1]]
with write(Path(sys.argv[2])) as beside:
    (beside / "model.safetensors" if beside.is_dir() else beside).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("format", "kind"), [("hf", "folder"), ("arpa", "file")])
def test_what_a_kill_left_goes_with_the_next_export(
    format, kind, make_tiny, tokenizer, tmp_path, run_fork
):
    rung = {"hf": "gpt2", "arpa": "ngram"}[format]
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(rung), tokenizer)
    (tmp_path / "to").mkdir()
    out = tmp_path / "to" / f"model.{format}"
    assert run_fork("-c", KILLED, kind, out).returncode == -9
    (left,) = (tmp_path / "to").iterdir()
    assert left.name.startswith(".")
    export(str(tmp_path / "run"), format, out)
    assert list((tmp_path / "to").iterdir()) == [out]


@pytest.mark.parametrize(
    ("format", "rung"), [("arpa", "ngram"), ("hf", "gpt2"), ("gguf", "gpt2"), ("meta", "llama3")]
)
def test_nothing_is_lost_and_nothing_is_left(
    format, rung, make_tiny, tokenizer, tmp_path, monkeypatch
):
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

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(RunError, match=r"place cannot be written to \(Perm.*\): choose another"):
        export(run, format, place / "model")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("kept", "kept")]


@pytest.mark.parametrize(
    ("format", "rung"), [("arpa", "ngram"), ("hf", "llama3"), ("meta", "llama3")]
)
def test_a_full_disk_is_said_in_a_line(format, rung, make_tiny, tokenizer, tmp_path, limit_files):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(rung), tokenizer)
    place = runs.make_folder(tmp_path / "place")
    with (
        limit_files(2_000),
        pytest.raises(RunError, match="model could not be written to .*: make room there"),
    ):
        export(str(tmp_path / "run"), format, place / "model")
    assert not list(place.iterdir())


@pytest.mark.parametrize(("record", "verb"), [({}, "train"), ({"tune": {}}, "tune")])
def test_a_run_that_was_stopped_says_how_it_goes_on(record, verb, tmp_path):
    runs.make_folder(tmp_path / "run" / "checkpoints")
    runs.write_record(tmp_path / "run", {"rung": "gpt2", **record})
    for format in ("hf", "gguf", "arpa"):
        with pytest.raises(
            RunError,
            match=f"run is not finished: go on with `rung {verb} --out .*run --resume` first",
        ):
            export(str(tmp_path / "run"), format, tmp_path / "model")


FORMS = {"ngram": ("arpa", "hf"), "gpt2": ("gguf", "hf"), "llama3": ("gguf", "hf", "meta")}


@pytest.fixture
def make_run(make_tiny, tokenizer, tmp_path):
    """A function that makes a run of a rung."""

    def make(name):
        folder = runs.make_folder(tmp_path / "run")
        runs.save_model(folder, make_tiny(name), tokenizer)
        runs.write_record(folder, {"rung": name})
        return folder

    return make


def read_all(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(run, out, format, said):
    """One line is said, and neither the run nor what is around it has changed."""
    before = read_all(run.parent)
    with pytest.raises(RungError, match=said) as caught:
        export(str(run), format, out)
    assert len(str(caught.value).splitlines()) == 1
    assert read_all(run.parent) == before


@pytest.mark.parametrize("name", TINY)
def test_an_export_leaves_its_run_as_it_is(name, make_run, tmp_path, monkeypatch, limit_files):
    run = make_run(name)
    (tmp_path / "linked").symlink_to(run)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for format in FORMS.get(name, ("hf",)):
        if format == "gguf":
            pytest.importorskip("gguf", reason="gguf is not installed: pip install 'rung[export]'")
        for out in (
            run / "out",
            run,
            run / "../run/out",
            tmp_path / "linked",
            tmp_path / "linked/out",
        ):
            assert_refused(
                run,
                out,
                format,
                "is in .*run, which an export leaves as it is: choose a place outside",
            )
        assert_refused(
            run,
            tmp_path / "nowhere",
            format,
            "nowhere is (a link that leads nowhere|there already): choose",
        )
        assert_refused(
            run / "config.json",
            tmp_path / "out",
            format,
            "config.json is not a whole ARPA file"
            if format == "hf"
            else "no run at .*config.json: `rung runs` lists",
        )
        with limit_files(500):
            assert_refused(
                run, tmp_path / "out", format, "could not be written to .*: make room there"
            )
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode: Path(path) != run)
            assert_refused(
                run,
                tmp_path / "out",
                format,
                "run cannot be read: Permission denied; `chmod u\\+rx` lets",
            )
        (run / "model.safetensors").rename(tmp_path / "weights")
        assert_refused(
            run,
            tmp_path / "out",
            format,
            "run has no model.safetensors: copy its weights there, or train",
        )
        (run / "checkpoints").mkdir()
        assert_refused(
            run,
            tmp_path / "out",
            format,
            "run is not finished: go on with `rung train --out .* --resume`",
        )
        (run / "checkpoints").rmdir()
        (tmp_path / "weights").rename(run / "model.safetensors")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_run_without_its_tokenizer_is_not_published(name, make_run, tmp_path):
    run = make_run("gpt2")
    (run / name).unlink()
    assert_refused(
        run, tmp_path / "out", "hf", f"run has no {name}, without which its text is read otherwise"
    )


@pytest.mark.parametrize("name", ["gpt2", "bigram"])
def test_what_may_not_be_read_is_said(name, make_run, monkeypatch):
    run = make_run(name)
    for closed in (run, run / "model.safetensors"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode, closed=closed: Path(path) != closed)
            if closed != run:
                patch.setattr(model_files, "safe_open", refuse)
            with pytest.raises(RunError, match=f"{closed.name} cannot be read: Permission denied"):
                load(run)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match="run cannot be read: Permission denied"):
        read_source(run)


def refuse(path, **options):
    raise FileNotFoundError(f"No such file or directory: {path}")  # as safetensors says it


@pytest.mark.parametrize("name", ["gpt2", "bigram"])
def test_a_run_without_weights_says_so(name, make_run):
    run = make_run(name)
    (run / "model.safetensors").unlink()
    with pytest.raises(
        RunError, match="run has no model.safetensors: copy its weights there, or train it again"
    ):
        load(run)
    (run / "checkpoints").mkdir()
    with pytest.raises(
        RunError, match="run is not finished: go on with `rung train --out .*run --resume` first"
    ):
        load(run)
