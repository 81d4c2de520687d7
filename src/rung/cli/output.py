"""What the command says beside its result: lines on standard error, and the next command as it can
be pasted.
"""

import logging
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rung import distributed

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_PROMPT = 40  # characters of a prompt that is suggested
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_manner = {"quiet": False}
_words: dict[str, str] = {}


def set_quiet(quiet: bool) -> None:
    """Whether only errors, warnings and the result are printed."""
    _manner["quiet"] = quiet


def is_quiet() -> bool:
    """Whether progress and hints are left out: asked for with `--quiet`, or another process
    speaks.
    """
    return _manner["quiet"] or not distributed.is_main()


def use_any_encoding() -> None:
    """Print what the terminal's encoding does not have as escapes: a model's text must not end the
    command.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def can_print(text: str, stream: TextIO) -> bool:
    """Whether the stream's encoding has all of it."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def find_overflow(console: "Console") -> Literal["crop", "ellipsis"]:
    """How text is cut that is too long for its column: not all encodings have an ellipsis."""
    return "ellipsis" if console.encoding.startswith("utf") else "crop"


def escape_controls(text: str) -> str:
    r"""The text without what would move a terminal's cursor or colour its words: ESC becomes
    `\x1b`.
    """
    return CONTROL.sub(lambda found: repr(found.group())[1:-1], text.replace("\r\n", "\n"))


def print_text(text: str) -> None:
    """A model's text, or its prompt, on standard output: as it is, but on a terminal without
    control sequences.
    """
    print(escape_controls(text) if sys.stdout.isatty() else text, end="", flush=True)


def say(message: str) -> None:
    """A line on standard error for whoever reads along; none with `--quiet`."""
    if not is_quiet():
        print(escape_controls(message), file=sys.stderr, flush=True)


def say_next(verb: str, *arguments: object) -> None:
    """The command that comes next, as it can be pasted into a shell in this folder."""
    say(f"Next:   {write_command(verb, *arguments)}")


def write_command(verb: str, *arguments: object) -> str:
    """A command of rung, quoted for the shell; what begins with a dash is kept from being read as
    an option.
    """
    words = [str(argument) for argument in arguments]
    dash = ["--"] if any(word.startswith("-") for word in words) else []
    return f"{program()} {shlex.join([verb, *dash, *words])}"


def replace_word(word: str, by: str) -> None:
    """In commands that are printed to go on with, write `by` for an argument: standard input is not
    there again.
    """
    _words[word] = by


def write_resuming(*words: object) -> str:
    """A command, by default the present one, quoted for the shell; of several processes, one that
    starts them all.
    """
    given = [str(word) for word in words] or [_words.get(word, word) for word in sys.argv[1:]]
    command = distributed.launch_command() if distributed.world_size() > 1 else program()
    return f"{command} {shlex.join(given)}"


def program() -> str:
    """How to call `rung` from here: by its name only where the shell finds this one under it."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{_name_program(Path(sys.executable))} -m rung"
    return _name_program(started) if started.name == "rung" else "rung"


def _name_program(path: Path) -> str:
    found = shutil.which(path.name)
    if (
        found
        and Path(found).exists()
        and path.exists()
        and Path(found).absolute() == path.absolute()
    ):
        return path.name
    absolute = path.absolute()
    near = absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
    return shlex.quote(str(near))


def suggest_prompt(record: Mapping[str, Any]) -> list[str]:
    """The beginning of the run's own prompt, as an argument for `rung generate`; none where it
    cannot be typed.
    """
    words = "".join(c for c in " ".join(str(record.get("prompt") or "").split()) if c.isprintable())
    if len(words) > LONGEST_PROMPT:
        words = words[:LONGEST_PROMPT].rsplit(" ", 1)[0]
    return [words] if words and can_print(words, sys.stderr) else []


class _Lines(logging.Handler):
    """Prints what libraries log as one line each, and the same line once; rung's own also where it
    only informs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print it, without the traceback."""
        line = escape_controls(" ".join(record.getMessage().split()))
        if line not in self.said:
            self.said.add(line)
            print(f"rung: {line}", file=sys.stderr, flush=True)


def show_logs() -> None:
    """Have warnings, and what rung's own modules inform about, printed on standard error."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Lines)]:
        root.removeHandler(handler)
    root.addHandler(_Lines())
    root.setLevel(logging.WARNING if distributed.is_main() else logging.ERROR)
    logging.getLogger("rung").setLevel(logging.NOTSET if is_quiet() else logging.INFO)
