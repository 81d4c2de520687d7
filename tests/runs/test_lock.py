"""Locks: one command at a time writes into a folder, and a kill releases it."""

import contextlib
import os
import socket
import subprocess
import sys
import threading

import pytest

from rung import runs
from rung.errors import RunError

HOLDING = """
import sys, time
from pathlib import Path
from rung import runs
with runs.lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_is_held_by_one_process_and_a_kill_lets_go_of_it(tmp_path):
    from rung.recipe import make_recipe
    from rung.workflows.climb import Climb, climb
    from rung.workflows.run_folder import check_unused
    from rung.workflows.train import execute
    from rung.workflows.tune import Tuning, tune

    folder, recipe = tmp_path / "runs" / "bigram", make_recipe({"rung": "bigram"})
    second = {
        "hold": lambda: runs.lock_folder(folder).__enter__(),
        "check": lambda: check_unused(folder),
        "train": lambda: execute(recipe, folder),
        "tune": lambda: tune(Tuning(base="anything"), folder),
        "climb": lambda: climb(Climb(folder=folder)),
    }
    with holder(folder) as process:
        said = (
            f"bigram is being written by process {process.pid} on {socket.gethostname()}: .* "
            f"another folder with --out"
        )
        for name, begin in second.items():
            with pytest.raises(RunError, match=said):
                pytest.fail(f"{name} began: {begin()}")
        with pytest.raises(RunError, match=said):
            climb(Climb(folder=folder.parent, rungs=("bigram",), corpus=__file__), lambda *_: None)
        assert sorted(path.name for path in folder.iterdir()) == [runs.HOLDER, runs.LOCK]
    check_unused(folder)  # though the lock of the killed one is there
    with runs.lock_folder(folder):
        pass
    assert not list(folder.iterdir())


def test_a_folder_that_is_held_is_made_and_only_a_new_one_goes_again(tmp_path):
    with runs.lock_folder(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert not (tmp_path / "new").exists()
    with runs.lock_folder(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "a").write_text("")
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["a"]


def test_threads_of_one_process_do_not_share_a_folder(tmp_path):
    def second():
        try:
            with runs.lock_folder(tmp_path):
                refused.append(None)
        except RunError as error:
            refused.append(str(error))

    refused = []
    with runs.lock_folder(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    second()
    assert refused[1] is None
