"""What README and docs show can be done, in the order of the page.

The rules for a page:

- Blocks of ```bash and ```python run in the order of the page, in a folder of the page's own:
  those of bash with `bash -e -u -o pipefail`, those of Python each in a process of its own. Blocks
  of ```text are not run.
- `--minutes N` becomes `--minutes 0.1`, which a `rung climb` without minutes is given too, and
  `minutes=N` in Python becomes `minutes=0.1`; `--steps N` of `rung train`, and `steps: N` in a
  recipe, become 3. `rung climb --between` makes 2 steps with one seed, and `rung climb
  toy-language` reads 200 kB of it.
- A block below a mark, such as the line *Needs the Hub.*, is not run, and is reported as skipped
  with the mark as the reason. A block below *Needs a package: pip install NAME.* runs where that
  package is installed.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FORKS = Path(__file__).parents[1] / "forks.py"
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
GENERATED = "docs/cli.md"
SHORTER = {
    r"--minutes [\d.]+": "--minutes 0.1",
    r"\brung climb (?!.*--(?:minutes|between))": "rung climb --minutes 0.1 ",
    r"(\brung train .*)--steps \d+": r"\1--steps 3",
    r"(\brung climb .*)\btoy-language$": r"\1toy-language@200KB --out runs/toy-language",
    r"--between gpt2 llama3$": "--between gpt2 llama3 --steps 2 --seeds 1",
    r"^steps: \d+": "steps: 3",
    r"\bminutes=\d+": "minutes=0.1",
}
MARK = r"\*((?:Needs |Press |Runs until you stop it)[^*\n]*)\.\*"
BLOCK = re.compile(rf"^(?:{MARK}\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGE = re.compile(r"Needs a package: pip install '?([\w.-]+?)(?:\[(\w+)\])?'?")


@dataclass(frozen=True)
class Block:
    """A block of code: where it stands, the mark above it or none, its language, its lines."""

    place: str
    mark: str
    language: str
    code: str


def read_page(page):
    return (ROOT / page).read_text(encoding="utf-8")


def read_blocks(page):
    text = read_page(page)
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(f"{page}:{line}", found[1] or "", found[2], found[3])


def read_prose(page):
    """The lines of a page, those of its blocks empty."""
    return BLOCK.sub(lambda block: "\n" * block[0].count("\n"), read_page(page)).split("\n")


def find_obstacle(mark):
    """Why a block with this mark is not run, or nothing."""
    package = PACKAGE.fullmatch(mark)
    return "" if package and is_installed(package[1], package[2] or "") else mark


def is_installed(name, extra=""):
    """Whether a package is installed, and what its extra adds to it."""
    try:
        needed = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return False
    plain, full = (
        [r for r in needed if not r.marker or r.marker.evaluate({"extra": e})] for e in ("", extra)
    )
    return all(is_installed(each.name, *each.extras) for each in full if each not in plain)


@pytest.fixture(scope="session")
def shell(fork_server):
    """A function that runs a block in a folder, with a `rung` on the path that need not import
    torch anew.
    """
    with tempfile.TemporaryDirectory(prefix="rung-") as name:
        ask = [sys.executable, "-I", "-S", str(FORKS), "ask", fork_server]
        (Path(name) / "rung").write_text(f'#!/bin/sh\nexec {shlex.join(ask)} rung "$@"\n')
        (Path(name) / "rung").chmod(0o755)
        path = os.pathsep.join([name, str(Path(sys.executable).parent), os.environ["PATH"]])

        def run(block, where):
            code = block.code
            for long, short in SHORTER.items():
                code = re.sub(long, short, code, flags=re.MULTILINE)
            command = ["bash", "-e", "-u", "-o", "pipefail", "-c", code]
            if block.language == "python":
                (where / "block.py").write_text(code)
                command = [*ask, "block.py"]
            environment = os.environ | {"PATH": path}
            streams = {
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.STDOUT,
            }
            done = subprocess.run(
                command, cwd=where, env=environment, text=True, check=False, **streams
            )
            assert done.returncode == 0, (
                f"{block.place} ends with {done.returncode}:\n{code}\n{done.stdout}"
            )

        yield run


def runs(block):
    return block.language in ("bash", "python")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(runs, read_blocks(page)))])
def test_what_a_page_shows_can_be_done(page, shell, tmp_path, subtests):
    for block in read_blocks(page):
        if not runs(block):
            continue
        if obstacle := find_obstacle(block.mark):
            with subtests.test(block.place):
                pytest.skip(f"{block.place}: {obstacle}")
        else:
            shell(block, tmp_path)


@pytest.mark.parametrize("page", sorted({*PAGES} - {GENERATED}))
def test_a_block_runs_or_says_why_not(page):
    """Every block has a language that the rules above name; what looks like a mark is one that they
    know.
    """
    for block in read_blocks(page):
        assert block.language in ("bash", "python", "text"), f"{block.place}: which language is it?"
        assert not block.mark or block.language != "text", (
            f"{block.place}: text does not run, and needs no mark"
        )
    for number, line in enumerate(read_prose(page), 1):
        assert not line.strip().startswith("```"), (
            f"{page}:{number}: a block begins at the left margin"
        )
        assert not re.fullmatch(r"\*[^*]+\*", line), (
            f"{page}:{number}: no mark, or not directly above a block"
        )


def read_commands(page):
    """Each command of rung in a page's blocks of bash, those that are not run too: its place, its
    line, its words.
    """
    for block in read_blocks(page):
        code = re.sub(r"<<'END'\n.*?^END$", "", block.code, flags=re.MULTILINE | re.DOTALL).replace(
            "\\\n", ""
        )
        for line in code.splitlines() if block.language == "bash" else ():
            for words in split_commands(line):
                if words[0] in ("rung", "torchrun") or "=" in words[0]:
                    yield block.place, line, words[words.index("rung") + 1 :]


def split_commands(line):
    """The words of each command in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for end, words in itertools.groupby(
        lexer, lambda word: bool(re.fullmatch(r"[|&;<>()]+", word))
    ):
        if not end:
            yield list(words)


@pytest.mark.parametrize("page", PAGES)
def test_the_command_knows_what_a_page_asks_of_it(page):
    from typer.main import get_command

    from rung.cli.main import app

    for place, line, (verb, *words) in read_commands(page):
        assert verb in get_command(app).commands, f"{place}: {line}"
        get_command(app).commands[verb].make_context(verb, words)


@pytest.mark.parametrize("page", PAGES)
def test_the_shell_leaves_commands_as_they_are(page):
    """In zsh too, which refuses a pattern that matches no file."""
    for place, line, _ in read_commands(page):
        bare = re.sub(r"'[^']*'|\"[^\"`$]*\"|(?:^| )#.*", "", line)
        assert not re.search(r"[*?\[\]{}()`]", bare), f"{place}: {line}"


def list_anchors(page):
    """The names of a page's headings, as GitHub makes them."""
    for line in read_prose(page):
        if heading := re.match(r"#+ (.*)", line):
            yield re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(
        r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", "\n".join(read_prose(page))
    ):
        if target.startswith(("http://", "https://")):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in list_anchors(path.resolve()), (
            f"{page} links to {target}#{anchor}"
        )


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    for name in re.findall(
        r"(?<![\w./-])(?:benchmarks|docs|recipes|src|tests|tools)/[\w./-]*\w", read_page(page)
    ):
        assert (ROOT / name).exists(), f"{page} names {name}"


@pytest.mark.parametrize("page", PAGES)
def test_prose_fits_a_hundred_columns(page):
    for number, line in enumerate(read_prose(page), 1):
        assert len(line) <= 100 or line.startswith(("|", "<!--")), (
            f"{page}:{number} has {len(line)} columns"
        )


def test_the_index_has_every_page():
    linked = re.findall(r"\]\(([\w-]+\.md)", read_page("docs/index.md"))
    assert {*linked, "index.md"} >= {path.name for path in (ROOT / "docs").glob("*.md")}
