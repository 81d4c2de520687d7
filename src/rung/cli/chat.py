"""The verb that talks with a chat model: chat."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rung.cli.app import verb
from rung.cli.options import (
    LoadArgument,
    RunArgument,
    SeedOption,
    read_typed,
)
from rung.cli.output import escape_controls, print_text, silence_libraries

COMMANDS = """/reset          forget what was said
/system TEXT    what stands before the conversation; alone, none
/temperature T  0 always takes the likeliest token
/save FILE      write the conversation down; `rung tune` can learn from it
/load FILE      go on from there
/quit           leave, as Ctrl-D does"""


@verb("chat", "rung chat runs/python-docs/llama3-chat")
def chat_command(
    run: RunArgument,
    system: Annotated[str, typer.Option(help="What stands before the conversation.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest tokens that make up this probability.")
    ] = 0.95,
    seed: SeedOption = 0,
    *,
    load_options: LoadArgument,
) -> None:
    """Talk to a tuned run; what is piped in is asked line by line."""
    silence_libraries()
    from rung.chat.session import ChatSession
    from rung.errors import RunError
    from rung.generation.decoder import Decoder
    from rung.generation.sampling import Sampling
    from rung.models import load
    from rung.models.load_options import LoadOptions

    system = read_typed("--system", system)
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    model, tokenizer = load(run, LoadOptions(**load_options))
    if not tokenizer.chat_template:
        raise RunError(
            f"{run} has no chat template: make a chat model of it with `rung tune "
            f"{shlex.quote(run)}`"
        )
    _Terminal(
        ChatSession(decoder=Decoder(model), tokenizer=tokenizer, system=system), sampling
    ).run()


class _Terminal:
    """The conversation on standard input and output: a prompt and streaming on a terminal, lines
    where it is piped.
    """

    def __init__(self, talk: Any, sampling: Any) -> None:
        self.talk = talk
        self.sampling = sampling
        self.is_terminal = sys.stdin.isatty()
        self.failed = False  # something that was typed

    def run(self) -> None:
        """Until /quit or the end of what is typed; where that was piped, a line that failed gives
        exit code 2.
        """
        self._talk()
        if self.failed and not self.is_terminal:
            raise typer.Exit(2)

    def _talk(self) -> None:
        if self.is_terminal:
            import readline  # noqa: F401  # gives `input` a history and keys to move with

            print(
                "Ask something. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.",
                file=sys.stderr,
            )
        if hasattr(
            sys.stdin, "reconfigure"
        ):  # a line that cannot be decoded must not take others with it
            sys.stdin.reconfigure(errors="surrogateescape")
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line.strip():
                self._ask(line)

    def _read(self) -> str | None:
        try:
            return input("> " if self.is_terminal else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
            print(file=sys.stderr)
            return ""

    def _ask(self, question: str) -> None:
        from rung.errors import RungError

        try:
            question = read_typed("the question", question)
            self.talk.answer(question, self.sampling, print_text)
            print(flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            if not self.is_terminal:
                raise
        except RungError as error:
            self._complain(str(error))
            return
        if self.talk.dropped:
            turns = (
                "oldest turn was"
                if self.talk.dropped == 1
                else f"{self.talk.dropped} oldest turns were"
            )
            print(f"(the {turns} dropped: the window is full)", file=sys.stderr)

    def _obey(self, line: str) -> bool:
        """Do what a command says; False to leave."""
        from rung.errors import RungError

        name, _, rest = line[1:].strip().partition(" ")
        known = {
            "reset": self._reset,
            "system": self._set_system,
            "temperature": self._set_temperature,
        }
        known |= {
            "save": self._save,
            "load": self._load,
            "help": lambda _: print(COMMANDS, file=sys.stderr),
        }
        if name == "quit":
            return False
        if name not in known:
            self._complain(f"unknown command /{name}: /help lists them")
            return True
        rest = rest.strip()
        try:
            known[name](rest if name in ("save", "load") else read_typed(f"/{name}", rest))
        except (RungError, ValueError) as error:
            self._complain(f"/{name}: {error}")
        except OSError as error:  # which names a file that is written beside
            self._complain(f"/{name}: {error.strerror}: {rest}")
        return True

    def _complain(self, message: str) -> None:
        self.failed = True
        print(f"rung: {escape_controls(message)}", file=sys.stderr)

    def _reset(self, _: str) -> None:
        self.talk.messages.clear()

    def _set_system(self, text: str) -> None:
        self.talk.system = text

    def _set_temperature(self, text: str) -> None:
        from dataclasses import replace

        try:
            temperature = float(text)
        except ValueError:
            raise ValueError(
                f"{text or 'nothing'} is no number: 0 always takes the likeliest token"
            ) from None
        self.sampling = replace(self.sampling, temperature=temperature)

    def _save(self, path: str) -> None:
        self.talk.save(_name_file(path))
        print(f"Saved {path}", file=sys.stderr)

    def _load(self, path: str) -> None:
        self.talk.load(_name_file(path))
        print(f"{len(self.talk.messages)} messages", file=sys.stderr)


def _name_file(path: str) -> Path:
    if not path:
        raise ValueError("name a file")
    return Path(path).expanduser()
