"""The generated parts of the documentation. tests/docs/test_pages.py has its commands and links."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_generated_parts_are_current():
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "update.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
