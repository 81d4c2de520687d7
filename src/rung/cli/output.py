"""Lines beside a command's result, on standard error, and commands that can be pasted."""

import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rung import distributed

if TYPE_CHECKING:
    from rich.console import Console

MAX_SUGGESTED_PROMPT = 40  # characters
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_state = {"quiet": False}
_replacements: dict[str, str] = {}


def set_quiet(quiet: bool) -> None:
    """Set whether only errors, warnings and the result are printed."""
    _state["quiet"] = quiet


def is_quiet() -> bool:
    """Whether progress and hints are left out: with `--quiet`, or in a process that is not main."""
    return _state["quiet"] or not distributed.is_main()


def escape_unencodable() -> None:
    """Print characters that the terminal's encoding lacks as escapes.

    A model's text must not end the command.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def can_print(text: str, stream: TextIO) -> bool:
    """Whether the stream's encoding has every character of the text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def find_overflow(console: "Console") -> Literal["crop", "ellipsis"]:
    """How text is cut that is too long for its column. Not all encodings have an ellipsis."""
    return "ellipsis" if console.encoding.startswith("utf") else "crop"


def escape_controls(text: str) -> str:
    r"""Escape what would move a terminal's cursor or colour its words: ESC becomes `\x1b`."""
    return CONTROL.sub(lambda found: repr(found.group())[1:-1], text.replace("\r\n", "\n"))


def print_text(text: str) -> None:
    """Print a model's text on standard output, its control characters escaped on a terminal."""
    print(escape_controls(text) if sys.stdout.isatty() else text, end="", flush=True)


def print_note(message: str) -> None:
    """Print a line on standard error; nothing with `--quiet`."""
    if not is_quiet():
        print(escape_controls(message), file=sys.stderr, flush=True)


def print_next_command(verb: str, *arguments: object, options: Sequence[str] = ()) -> None:
    """Print the command that comes next, as it can be pasted into a shell in this folder."""
    print_note(f"Next:   {format_command(verb, *arguments, options=options)}")


def format_command(verb: str, *arguments: object, options: Sequence[str] = ()) -> str:
    """Write a command of rung, quoted for the shell.

    Arguments that begin with a dash are kept from being read as options.
    """
    words = [str(argument) for argument in arguments]
    dash = ["--"] if any(word.startswith("-") for word in words) else []
    return f"{program_name()} {shlex.join([verb, *options, *dash, *words])}"


def replace_argument(word: str, by: str) -> None:
    """Print `by` for an argument in later commands: standard input cannot be read twice."""
    _replacements[word] = by


def format_resume_command(*words: object) -> str:
    """Write a command, by default the present one, quoted for the shell.

    Under `torchrun` it starts all processes.
    """
    given = [str(word) for word in words] or [
        _replacements.get(word, word) for word in sys.argv[1:]
    ]
    command = distributed.launch_command() if distributed.world_size() > 1 else program_name()
    return f"{command} {shlex.join(given)}"


def program_name() -> str:
    """The program to call from here: its name if the shell finds this one by it, else its path."""
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
    """The beginning of the run's own prompt as an argument, or none where it cannot be typed."""
    words = "".join(c for c in " ".join(str(record.get("prompt") or "").split()) if c.isprintable())
    if len(words) > MAX_SUGGESTED_PROMPT:
        words = words[:MAX_SUGGESTED_PROMPT].rsplit(" ", 1)[0]
    return [words] if words and can_print(words, sys.stderr) else []


class _Lines(logging.Handler):
    """Prints each message that libraries log as one line, and the same line once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message without its traceback."""
        line = escape_controls(" ".join(record.getMessage().split()))
        if line not in self.said:
            self.said.add(line)
            print(f"rung: {line}", file=sys.stderr, flush=True)


def show_logs() -> None:
    """Print warnings, and what rung's own modules inform about, on standard error."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Lines)]:
        root.removeHandler(handler)
    root.addHandler(_Lines())
    root.setLevel(logging.WARNING if distributed.is_main() else logging.ERROR)
    logging.getLogger("rung").setLevel(logging.NOTSET if is_quiet() else logging.INFO)


def silence_libraries() -> None:
    """Have warnings printed in one line each, and no progress bars of other libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    show_logs()
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
