"""Files are whole or not there, and a cache knows its damage."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rung import files
from rung.errors import RunError

KILLED = """
import os, signal, sys
from pathlib import Path
from rung import files
with files.make_once(Path(sys.argv[1])) as beside:
    (beside / "part.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_killed(program, *arguments):
    """A process that kills itself; its number."""
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])
    assert process.wait() == -9
    return process.pid


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_text(text):
    return lambda beside: (beside / "text.txt").write_text(text)


def make_once(folder, make):
    with files.make_once(folder) as beside:
        if beside:
            make(beside)
    return folder


def compute_once(folder, compute):
    make_once(folder, lambda beside: files.write_value(beside, compute()))
    return files.read_cached_value(folder)


def fail(beside):
    (beside / "text.txt").write_text("half")
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "old")
    with pytest.raises(ZeroDivisionError), files.atomic_replace(path) as beside:
        beside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_file_takes_the_place_of_no_folder_device_or_pipe(tmp_path):
    """A report that is written to the folder of the runs must not remove them."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.txt").write_text("kept")
    (tmp_path / "link").symlink_to("runs")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stream").symlink_to("/proc/self/fd/1")
    before = names(tmp_path)
    for name, kind in [
        ("runs", "folder"),
        ("link", "folder"),
        ("pipe", "device"),
        ("stream", "device"),
    ]:
        with pytest.raises(RunError, match=f"{name} .*{kind}.*: name a file"):
            files.write_atomically(tmp_path / name, "new")
    assert names(tmp_path) == before and names(tmp_path / "runs") == ["a.txt"]


def test_a_failed_write_names_the_file_and_not_the_temporary_one(tmp_path):
    for error, filename in [(28, None), (28, "temporary"), (13, "another")]:
        with pytest.raises(OSError) as caught, files.atomic_replace(tmp_path / "a.txt") as beside:
            raise OSError(error, "no", str(beside) if filename == "temporary" else filename)
        expected = "another" if filename == "another" else str(tmp_path / "a.txt")
        assert caught.value.filename == expected
    with (
        pytest.raises(RunError, match=r"a.txt cannot be written to \(no\): choose another place"),
        files.atomic_replace(tmp_path / "a.txt") as beside,
    ):
        raise OSError(30, "no", str(beside))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_found_before_the_work():
    """Also by a user whom no permission stops, as on a file system that can only be read."""
    with pytest.raises(RunError, match=r"/proc cannot be written to \(.+\): choose another place"):
        files.check_writable_file(Path("/proc/a.txt"))


def test_a_folder_takes_the_place_of_another(tmp_path):
    for text in ("old", "new"):
        with files.atomic_replace(tmp_path / "made") as beside:
            beside.mkdir()
            (beside / f"{text}.txt").write_text(text)
    assert names(tmp_path) == ["made"] and names(tmp_path / "made") == ["new.txt"]


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    synced, replaced = [], []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").resolve().name) or fsync(fd),
    )
    monkeypatch.setattr(
        Path, "replace", lambda self, to: replaced.append([*synced]) or replace(self, to)
    )
    make_once(tmp_path / "kept", write_text("whole"))
    if Path("/proc/self/fd").exists():
        assert {"text.txt", files.MANIFEST} <= set(replaced[0]) and tmp_path.name in synced


def test_a_full_disk_is_named(tmp_path):
    """Arrow says only that there is no space."""

    def fill(_):
        raise OSError(28, "Error writing bytes to file")

    with pytest.raises(OSError) as caught:
        make_once(tmp_path / "kept", fill)
    assert caught.value.filename == str(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_what_is_kept_is_made_once_and_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No space"):
        make_once(tmp_path / "kept", fail)
    assert not (tmp_path / "kept").exists() and len(names(tmp_path)) == 1  # the lock
    for _ in range(2):
        kept = make_once(tmp_path / "kept", write_text("whole"))
        assert (kept / "text.txt").read_text() == "whole"
    make_once(tmp_path / "kept", fail)  # not asked


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: (kept / "text.txt").write_text("who"),
        lambda kept: (kept / "text.txt").write_text("WHOLE"),
        lambda kept: (kept / "text.txt").unlink(),
        lambda kept: (kept / files.MANIFEST).unlink(),
        lambda kept: (kept / files.MANIFEST).write_text("{"),
        lambda kept: (kept / files.MANIFEST).write_text('{"text.txt": 5}'),
        lambda kept: (kept / files.MANIFEST).write_text("[]"),
    ],
)
def test_what_is_damaged_is_made_again(damage, tmp_path):
    kept = make_once(tmp_path / "kept", write_text("whole"))
    damage(kept)
    assert files.find_damage(kept)
    assert (make_once(kept, write_text("whole")) / "text.txt").read_text() == "whole"
    assert files.find_damage(kept) is None


def test_a_large_file_is_held_to_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_digest", lambda path: pytest.fail("it was read"))
    monkeypatch.setattr(files, "HASHED_BYTES", 3)
    with pytest.raises(pytest.fail.Exception):
        make_once(tmp_path / "small", lambda beside: (beside / "a").write_text("abc"))
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a").write_text("abcdef")
    files.write_manifest(tmp_path / "large", hashed_bytes=3)
    assert files.find_damage(tmp_path / "large") is None
    (tmp_path / "large" / "a").write_text("abcde")
    assert files.find_damage(tmp_path / "large") == "a has 5 bytes and had 6"


def test_a_kill_leaves_no_lock_and_its_traces_are_swept(tmp_path):
    kept = tmp_path / "kept"
    run_killed(KILLED, kept)
    assert not kept.exists() and len(names(tmp_path)) == 2  # the lock, and what was half made
    make_once(kept, write_text("whole"))
    assert names(tmp_path) == [".kept.lock", "kept"]


def test_what_others_are_writing_is_not_swept(tmp_path):
    pid = run_killed("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    machine, path = files._hash_machine(), tmp_path / "a.txt"
    there = [
        f".{os.getpid()}-{machine}-00000000.a.txt",
        f".{pid}-ffffff-00000000.a.txt",
        ".12.a.txt",
        ".gitignore",
    ]
    gone = [f".{pid}-{machine}-0000000{n}.a.txt" for n in range(2)]
    other = f".{pid}-{machine}-00000000.b.txt"
    for name in (*there, *gone, other):
        (tmp_path / name).write_text("")
    files.write_atomically(path, "text")
    assert names(tmp_path) == sorted([*there, other, "a.txt"])
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*there, "a.txt"])
    files.remove_leftovers(tmp_path, alone=True)
    assert names(tmp_path) == sorted([*there[2:], "a.txt"])


def test_a_number_that_another_process_has_now_is_no_writer(tmp_path):
    """In a container every command may have the same number."""
    left = tmp_path / f".{os.getpid()}-{files._hash_machine()}-00000000.a.txt"
    left.write_text("")
    os.utime(left, (time.time() - 10**6,) * 2)
    files.remove_leftovers(tmp_path)
    assert not names(tmp_path)


def test_many_at_once_make_it_once(tmp_path):
    made, together = [], threading.Barrier(8)

    def work():
        together.wait()
        make_once(
            tmp_path / "kept",
            lambda beside: made.append(beside) or (beside / "a").write_text("a" * 10_000),
        )

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and files.find_damage(tmp_path / "kept") is None


def test_who_waits_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "QUIET_WAIT_SECONDS", 0.01)
    begun, waited = threading.Event(), threading.Event()
    monkeypatch.setattr(files.logger, "info", lambda *_: waited.set())

    def hold():
        with files.locked(tmp_path / "kept"):
            begun.set()
            assert waited.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)
    with files.locked(tmp_path / "kept"):
        assert waited.is_set()
    thread.join()


def test_a_value_is_found_once_and_found_again_where_it_is_damaged(tmp_path):
    found = []
    for _ in range(2):
        assert compute_once(
            tmp_path / "value", lambda: found.append(1) or {"b": 1, "a": [2.5]}
        ) == {
            "b": 1,
            "a": [2.5],
        }
    assert len(found) == 1 and list(files.read_cached_value(tmp_path / "value")) == ["b", "a"]
    (tmp_path / "value" / files.VALUE).write_text(json.dumps(None))
    assert files.read_cached_value(tmp_path / "value") is None
    assert compute_once(tmp_path / "value", lambda: 5) == 5
    files.write_cached_value(tmp_path / "value", [6])
    assert files.read_cached_value(tmp_path / "value") == [6] and compute_once(
        tmp_path / "value", lambda: 7
    ) == [6]


@pytest.mark.skipif(os.name == "nt", reason="there a user has a number on no system")
def test_a_user_without_a_home_has_a_cache(tmp_path, monkeypatch):
    """As in a container that is started with --user."""
    import pwd

    for name in ("HOME", "RUNG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = files.cache_folder()
    assert folder == tmp_path / f"rung-{os.getuid()}"
    folder.mkdir()
    assert files.cache_folder() == folder
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    (tmp_path / f"rung-{own + 1}").mkdir()
    with pytest.raises(RunError, match="is another user's: name one in RUNG_CACHE"):
        files.cache_folder()
