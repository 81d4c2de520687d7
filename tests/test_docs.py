"""Documentation that cannot rot."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_generated_parts_are_current():
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "update.py"), "--check"], capture_output=True, text=True, check=False
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


def read_commands():
    """The README's blocks of code, line by line, and of each line the words of a command of rung, or none."""
    code = "".join((ROOT / "README.md").read_text().split("```")[1::2])
    for line in code.splitlines():
        found = re.match(r"(?:\$ |torchrun .* -m |echo '.*' \| )?(rung [a-z].*)", line)
        yield line, shlex.split(found[1], comments=True)[1:] if found else []


def test_the_shell_leaves_the_readmes_commands_as_they_are():
    for line, words in read_commands():
        if words:
            bare = re.sub(r"'[^']*'|\"[^\"`$]*\"| #.*", "", line)
            assert not re.search(r"[*?\[\]{}()<>&;`]", bare), line


def test_the_readmes_commands_can_run_in_a_row(tmp_path, monkeypatch):
    """Each parses, writes where nothing is yet, and reads what one before it wrote."""
    from typer.main import get_command

    from rung.cli import app, building
    from rung.models import LADDER

    monkeypatch.chdir(tmp_path)
    for name in ("my.txt", "big.txt", "train.txt", "other.txt"):
        Path(name).write_text("text")
    made = set()
    for line, words in read_commands():
        if words:
            verb, arguments = words[0], words[1:]
            given = get_command(app).commands[verb].make_context(verb, arguments).params
            corpus = building._slug(given.get("corpus") or "python-docs")
            new = []
            if verb == "climb":
                suffix = "".join(f"-{end}" for end in given["between"] or ())
                folder = str(given["out"] or f"runs/{corpus}{suffix}")
                new = [folder, *(f"{folder}/{rung}" for rung in LADDER)]
            elif verb == "train" and not (given["resume"] or given["recipe"]):
                rung = "infini-gram" if "order=inf" in (given["set_"] or ()) else given["rung"]
                new = [str(given["out"] or f"runs/{corpus}-{rung}")]
            elif verb == "tune":
                new = [f"{given['run']}-{'preferred' if given['preference'] else 'chat'}"]
            assert not made & set(new), f"{line}: it is there already"
            made.update(new)
        for run in re.findall(r"runs/[\w/-]+\w(?![\w./-])", line.split(" #")[0]):
            assert run in made, f"{line}: {run} was not made before"
