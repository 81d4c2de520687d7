"""The run folder: nothing half-written is ever read as whole."""

import json
import os
import stat

import pytest

from rung import runs
from rung.errors import RunError


def test_a_failed_save_leaves_the_old_model(tmp_path):
    class Part:
        def __init__(self, fails):
            self.fails = fails

        def save_pretrained(self, folder):
            folder.mkdir(exist_ok=True)
            (folder / "model.safetensors").write_text("new" if not self.fails else "half")
            if self.fails:
                raise OSError(28, "No space left on device")

    runs.save_model(tmp_path, Part(fails=False))
    with pytest.raises(
        RunError, match="No space left on device.*: make room there; what was saved is kept"
    ):
        runs.save_model(tmp_path, Part(fails=True))
    assert (tmp_path / "model.safetensors").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        runs.make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_all_that_is_written_has_the_permissions_of_the_umask(umask, prose, tmp_path, monkeypatch):
    from rung.export.export import export
    from rung.recipe import make_recipe
    from rung.report.page import write_report
    from rung.workflows.train import execute
    from rung.workflows.tune import Tuning, tune

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my.txt").write_text(prose)
    talks = [
        [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": "It."}]
        for n in range(20)
    ]
    (tmp_path / "talks.jsonl").write_text(
        "\n".join(json.dumps({"messages": talk}) for talk in talks)
    )
    few = {
        "corpus": str(tmp_path / "my.txt"),
        "steps": 1,
        "train": {"per_device_train_batch_size": 2},
    }
    small = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    pages = {
        "ngram": {"corpus": few["corpus"], "rung": "ngram", "model": {"order": 2}},
        "rnn": {
            **few,
            "rung": "rnn",
            "model": {"hidden_size": 32, "max_position_embeddings": 64},
            "carry_state": True,
        },
        "llama3": {**few, "rung": "llama3", "model": small},
        "adapted": {**few, "rung": "llama3", "base": str(tmp_path / "made" / "llama3"), "lora": 2},
    }
    made = tmp_path / "made"
    before = os.umask(umask)
    try:
        for name, page in pages.items():
            execute(make_recipe(page), made / name)
        tune(
            Tuning(base=str(made / "llama3"), data=str(tmp_path / "talks.jsonl"), steps=1),
            made / "chat",
        )
        for format, name in (
            ("hf", "llama3"),
            ("gguf", "llama3"),
            ("meta", "llama3"),
            ("arpa", "ngram"),
        ):
            export(str(made / name), format, made / f"{name}.{format}")
        write_report([made / "ngram"], made / "report.html")
    finally:
        os.umask(before)
    found = {
        path: stat.S_IMODE(path.stat().st_mode)
        for top in (made, tmp_path / "cache")
        for path in top.rglob("*")
    }
    assert (
        sum(path.suffix == ".safetensors" for path in found) >= 9
    )  # of runs, checkpoints, an adapter, an export
    assert not {
        path: oct(mode) for path, mode in found.items() if path.is_dir() and mode != 0o777 & ~umask
    }
    files = {
        path: mode
        for path, mode in found.items()
        if path.is_file() and path.suffix not in (".so", ".lock")
    }
    assert not {path: oct(mode) for path, mode in files.items() if mode != 0o666 & ~umask}
