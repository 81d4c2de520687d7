"""Write the generated parts of the documentation again; with --check, say what is out of date and exit with 1.

README.md: the map from the modules' own first lines, the table from docs/results. docs/cli.md: from --help.
docs/distributed.md: the tables from the arithmetic in tools/scaling.py.
"""

import ast
import re
import sys
from pathlib import Path

import scaling
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rung"
OTHERS = {
    "recipes/": "a page for each rung, and `book/` with the chapter's own settings",
    "benchmarks/": "the measurements that claims appeal to, their output beside them",
    "docs/": "the command in full, and results with the command that made them",
    "tests/": "one file a room, and contracts over all rungs",
}


def draw_map() -> str:
    """The files, a phrase each: the first line of every module's docstring."""
    lines = []
    for path in sorted(SOURCE.rglob("*.py"), key=lambda p: (p.relative_to(SOURCE).parts[:-1], p.name)):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
        lines.append(f"src/{path.relative_to(SOURCE.parent)!s:<32} {first.rstrip('.')}")
    lines += [f"{name:<36} {phrase}" for name, phrase in OTHERS.items()]
    return "```\n" + "\n".join(lines) + "\n```"


def show_climb() -> str:
    """The table that `rung climb` printed, with the command."""
    return (
        "```\n" + (ROOT / "docs" / "results" / "climb-python-docs.txt").read_text(encoding="utf-8").rstrip() + "\n```"
    )


def write_cli() -> str:
    """Every verb's --help."""
    from rung.cli import app

    names = [command.name for command in app.registered_commands]
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    parts = ["# The command\n\nWritten by `make docs` from `--help`.\n"]
    for args in ([], *([name] for name in names)):
        shown = CliRunner().invoke(app, [*args, "--help"], env=environment, prog_name="rung").stdout
        shown = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## {' '.join(['rung', *args])}\n\n```\n{shown}\n```\n")
    return "\n".join(parts)


def fill_scaling(text: str) -> str:
    """The page with its tables as they are computed now."""
    for name, show in scaling.TABLES.items():
        text = fill(text, name, show())
    return text


def fill(text: str, name: str, content: str) -> str:
    """`text` with the part between <!-- name --> and <!-- /name --> replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def main() -> int:
    """Write or check."""
    readme = ROOT / "README.md"
    wanted = fill(readme.read_text(encoding="utf-8"), "map", draw_map())
    pages = {readme: fill(wanted, "climb", show_climb()), ROOT / "docs" / "cli.md": write_cli()}
    page = ROOT / "docs" / "distributed.md"
    pages[page] = fill_scaling(page.read_text(encoding="utf-8"))
    stale = [p for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`")
        else:
            path.write_text(pages[path], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
