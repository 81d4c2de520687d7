"""A full disk is one clear line, whichever library met it."""

import pytest
from safetensors import SafetensorError

from rung.errors import RunError
from rung.full_disk import describe_failed_write, explain_failed_writes


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/7"),
        RuntimeError(
            "[enforce fail at inline_container.cc:672] . unexpected pos 1612928 vs 1612816"
        ),
    ],
)
def test_a_full_disk_is_one_clear_line(error, tmp_path):
    with pytest.raises(RunError, match="make room there"), explain_failed_writes(tmp_path):
        raise error
    with pytest.raises(RunError, match="^inside: "), explain_failed_writes(tmp_path):
        raise RunError(f"inside: {error}") from error
    with pytest.raises(RuntimeError, match="shape"), explain_failed_writes(tmp_path):
        raise RuntimeError("shape mismatch")


def test_a_limit_on_the_size_of_files_is_said_to_be_one(tmp_path):
    for error in (OSError(27, "File too large"), Exception("I/O: too large (os error 27)")):
        said = describe_failed_write(tmp_path, error)
        assert "too large" in said and "or allow larger files (`ulimit -f`)" in said
    said = describe_failed_write(tmp_path, OSError(28, "No space"))
    assert said.endswith("(No space): make room there; what was saved is kept")
