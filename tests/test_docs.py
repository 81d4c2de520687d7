"""Documentation that cannot rot."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_generated_parts_are_current():
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "update.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_every_command_in_the_readme_is_one():
    from typer.testing import CliRunner

    from rung.cli import app

    code = "".join((ROOT / "README.md").read_text().split("```")[1::2])
    verbs = {line.split()[1] for line in code.splitlines() if line.startswith("rung ")}
    assert verbs
    for verb in verbs:
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0, verb
