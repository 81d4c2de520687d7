"""The generated parts of the documentation. tests/docs/test_pages.py has its commands and links."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_generated_parts_are_current(run_fork):
    made = run_fork(ROOT / "tools" / "update.py", "--check")
    assert made.returncode == 0, made.stdout + made.stderr
