"""Write the generated parts of the documentation; with --check, name what is out of date and exit
with 1.

README.md: the table of a climb from docs/results, the table of the ladder from the rungs' own
files. docs/architecture.md: the map, from the first line of every module. docs/cli.md: from --help.
docs/distributed.md: the tables that tools/scaling.py computes. docs/performance.md: the table that
tools/performance.py reads from benchmarks.
"""

import ast
import re
import sys
from pathlib import Path

import performance
import scaling
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rung"
RUNGS = {
    "bigram": "bigram.py",
    "ngram": "ngram/model.py",
    "rnn": "rnn.py",
    "rnn-attention": "rnn_attention.py",
    "gpt2": "gpt2.py",
    "llama3": "llama3.py",
}
OTHERS = {
    "recipes/": "A recipe for each rung, and `book/` with the settings of the book's chapter",
    "benchmarks/": (
        "The measurements that claims appeal to, by room, each with its output beside it"
    ),
    "docs/": "These pages, and `results/` with the command that made each of them",
    "tools/": "Programs that write generated parts of the documentation, and a text for benchmarks",
    "tests/": "Tests of every room, and contracts over all rungs",
}


def read_docstring(path: Path) -> str:
    """The docstring of a module."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def draw_map() -> str:
    """A line for each file: the first line of the module's docstring."""
    lines = []
    for path in sorted(
        SOURCE.rglob("*.py"), key=lambda p: (p.relative_to(SOURCE).parts[:-1], p.name)
    ):
        first = " ".join(read_docstring(path).split("\n\n")[0].split())
        lines.append(f"src/{path.relative_to(SOURCE.parent)!s:<32} {first.rstrip('.')}")
    lines += [f"{name:<36} {phrase}" for name, phrase in OTHERS.items()]
    return "```text\n" + "\n".join(lines) + "\n```"


def draw_ladder() -> str:
    """A row for each rung: idea and addition as its file's docstring has them, and the file's
    lines.
    """
    rows = ["| rung | idea | what it adds | file | lines |", "| --- | --- | --- | --- | ---: |"]
    for name, file in RUNGS.items():
        path = SOURCE / "models" / file
        text = read_docstring(path)
        idea = re.match(r"Rung \d: (.*)\.\n", text)
        new = re.search(r"^New: +(.*?)\.\n", text, re.DOTALL | re.MULTILINE)
        assert idea and new, f"{path} does not say which rung it is"
        lines = len(path.read_text(encoding="utf-8").splitlines())
        place = path.relative_to(ROOT).as_posix()
        rows.append(
            f"| `{name}` | {idea[1]} | {' '.join(new[1].split())} | [`{file}`]({place}) | {lines} |"
        )
    return "\n".join(rows)


def show_climb() -> str:
    """The table that `rung climb` printed, with the command."""
    table = (ROOT / "docs" / "results" / "climb-python-docs.txt").read_text(encoding="utf-8")
    return f"```text\n{table.rstrip()}\n```"


def write_cli() -> str:
    """Every verb's --help."""
    from rung.cli.main import VERBS, app

    verbs = get_command(app).commands
    inner = [[name, each] for name in verbs for each in getattr(verbs[name], "commands", ())]
    names = sorted([*([name] for name in verbs), *inner], key=lambda words: VERBS.index(words[0]))
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    parts = ["# The command\n\nWritten by `make docs` from `--help`.\n"]
    for args in ([], *names):
        shown = CliRunner().invoke(app, [*args, "--help"], env=environment, prog_name="rung").stdout
        shown = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## {' '.join(['rung', *args])}\n\n```text\n{shown}\n```\n")
    return "\n".join(parts)


def fill(text: str, name: str, content: str) -> str:
    """`text` with the part between <!-- name --> and <!-- /name --> replaced."""
    assert f"<!-- {name} -->\n" in text and f"<!-- /{name} -->" in text, (
        f"no page has the marks of {name}"
    )
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def main() -> int:
    """Write or check."""
    parts = {
        "README.md": {"climb": show_climb, "ladder": draw_ladder},
        "docs/architecture.md": {"map": draw_map},
        "docs/distributed.md": scaling.TABLES,
        "docs/performance.md": performance.TABLES,
    }
    pages = {ROOT / "docs" / "cli.md": write_cli()}
    for page, shows in parts.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, show in shows.items():
            text = fill(text, name, show())
        pages[ROOT / page] = text
    stale = [
        p for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`")
        else:
            path.write_text(pages[path], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
