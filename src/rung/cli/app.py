"""The app, and how its verbs end: exit codes, errors in one line, and the line that goes on."""

import errno
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import typer
from typer.core import TyperCommand

from rung import distributed
from rung.cli.options import LOAD_OPTIONS, LOADS, QuietOption
from rung.cli.output import can_print, escape_controls, format_resume_command, set_quiet
from rung.errors import RungError
from rung.files import cache_folder
from rung.full_disk import DISK_FULL, describe_failed_write

app = typer.Typer(
    name="rung",
    help="Climb from a bigram to Llama 3 on your own text.",
    epilog="Start here: rung climb",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(
    name: str,
    example: str,
    *,
    group: typer.Typer = app,
    on_all_ranks: bool = False,
    former: dict[str, str] | None = None,
    resumes: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command, whose errors become one line and an exit code.

    The code is 2 for a user's mistake, 1 for a failing system, 130 after Ctrl-C. Every command
    takes `--quiet`, and one with an argument `load_options` takes `--window`, `--dtype` and
    `--trust-remote-code`. Under `torchrun` only the main process runs it, or all with
    `on_all_ranks`. `former` has options that are settings now, and the setting's key: to give one
    is a mistake, and the line says the new way. After Ctrl-C work goes on by the same command, and
    with `resumes` by the verb with the run's folder. A command of a verb that has several stands in
    its `group`; that without a name is the verb itself.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, quiet: bool = False, **kwargs: Any) -> None:
            set_quiet(quiet)
            if LOADS in inspect.signature(function).parameters:
                kwargs[LOADS] = {name: kwargs.pop(name) for name in LOAD_OPTIONS}
            if not (on_all_ranks or distributed.is_main()):
                return
            run_or_exit(functools.partial(function, *args, **kwargs), name if resumes else "")

        guarded.__signature__ = _with_shared_options(function)  # type: ignore[attr-defined]
        guarded.__doc__ = _join_lines(inspect.getdoc(function) or "")
        epilog = f"Example: {example}"
        if not name:
            return group.callback(invoke_without_command=True, epilog=epilog)(guarded)
        command = _refuse_former(former) if former else None
        return group.command(name, cls=command, epilog=epilog)(guarded)

    return register


def run_or_exit(command: Callable[[], None], resumed_by: str = "") -> None:
    """Run a command; what goes wrong becomes one line and an exit code, as `verb` says.

    `resumed_by` is the verb that goes on with a run from its folder, if there is one.
    """
    try:
        command()
        _flush_output()
        distributed.destroy_process_group()
    except RungError as error:
        exit_with_error(_with_notes(str(error), error), 2)
    except OSError as error:
        if not error.filename and error.errno in (errno.EPIPE, *DISK_FULL):
            _discard_output(sys.stdout)
        if error.errno == errno.EPIPE:
            # `head` and `less` have read as much as they want.
            raise typer.Exit(1) from None
        if error.errno in DISK_FULL:
            message = describe_failed_write(error.filename or "standard output", error)
            exit_with_error(_with_notes(message, error), 2)
        if _is_of_cache(error):
            exit_with_error(
                f"the cache {cache_folder()} cannot be written to ({error.strerror}): name another "
                f"folder in RUNG_CACHE",
                2,
            )
        where = f": {error.filename}" if error.filename else ""
        exit_with_error(_with_notes(f"{error.strerror or error}{where}", error), 1)
    except KeyboardInterrupt as error:
        exit_with_error(_describe_stop(error, resumed_by), 130)
    except typer.Exit:
        raise
    except Exception as error:
        if _follows_interrupt(error):
            exit_with_error("stopped", 130)
        if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
            exit_with_error(
                "an argument or a name is not UTF-8, and cannot be used here: write it in UTF-8", 2
            )
        distributed.defer_to_main()
        raise


def run_app() -> None:
    """Run the app; help that cannot be written, as on a full disk, is one line as well."""
    try:
        run_or_exit(_run_and_flush)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def _run_and_flush() -> None:
    """Run the app, and flush what it printed while what fails there can still be said."""
    try:
        app()
    except SystemExit:
        _flush_output()
        raise


def _flush_output() -> None:
    if sys.stdout is not None:  # as it is where standard output was closed
        sys.stdout.flush()


def _join_lines(text: str) -> str:
    """Make one line of each paragraph, which the terminal breaks where it ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _refuse_former(former: dict[str, str]) -> type[TyperCommand]:
    """A command that ends with exit code 2 where an option of `former` is given."""

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            options = args[: args.index("--")] if "--" in args else args
            for place, word in enumerate(options):
                option, _, value = word.partition("=")
                if option in former:
                    key = former[option]
                    value = value or (options[place + 1 :] or ["VALUE"])[0]
                    setting = key if "=" in key else f"{key}={value}"
                    exit_with_error(f"{option} is a setting now: write --set {setting}", 2)
            return super().parse_args(ctx, args)

    return Command


def _with_notes(message: str, error: BaseException) -> str:
    """The message with the notes of the error: what is kept, and how to go on."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def _discard_output(stream: TextIO) -> None:
    """Write what a stream still holds nowhere: Python would fail with it at its end."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _is_of_cache(error: OSError) -> bool:
    """Whether the cache, or a folder that it would be made in, is refused to this user."""
    refusals = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
    if error.errno not in refusals or not isinstance(error.filename, str):
        return False
    place, cache = Path(error.filename), cache_folder()
    return place.is_relative_to(cache) or (
        cache.is_relative_to(place) and not os.access(cache, os.W_OK)
    )


def _describe_stop(error: KeyboardInterrupt, resumed_by: str) -> str:
    """Say what Ctrl-C stopped, and the line that goes on where work was saved."""
    from rung.api.interrupts import Interrupted

    if not isinstance(error, Interrupted):
        return _with_notes("stopped", error)
    from rung.runs import RECORD

    if resumed_by and not (error.folder / RECORD).exists():
        return f"stopped before anything was saved. Begin again with: {format_resume_command()}"
    words = (resumed_by, "--out", error.folder, "--resume") if resumed_by else ()
    return f"stopped; the work so far is saved. Go on with: {format_resume_command(*words)}"


def _with_shared_options(function: Callable[..., None]) -> inspect.Signature:
    """The signature of a command with `--quiet`, and with each of the options of loading."""
    plain = inspect.signature(function)
    shared = (LOAD_OPTIONS if LOADS in plain.parameters else {}) | {"quiet": (QuietOption, False)}
    own = [parameter for name, parameter in plain.parameters.items() if name != LOADS]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in shared.items()
    ]
    return plain.replace(parameters=[*own, *added])


def _follows_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an error, as in an engine whose call was broken off."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def exit_with_error(message: str, code: int) -> None:
    """End the command with one line and an exit code; of several processes the main one prints.

    Ctrl-C (130) has reached all of them.
    """
    if code != 130:
        distributed.defer_to_main()
    if distributed.is_main() or code != 130:
        try:
            print(f"rung: {escape_controls(message)}", file=sys.stderr, flush=True)
        except OSError:  # as where it is full: the exit code says still how the command ended
            _discard_output(sys.stderr)
    raise typer.Exit(code)


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object on standard output, in ASCII where the encoding lacks a character."""
    from rung.files import to_json

    text = to_json(facts, indent=2)
    print(text if can_print(text, sys.stdout) else json.dumps(json.loads(text), indent=2))
