"""The verb that measures the words of a text: surprisal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli.app import print_json, verb
from rung.cli.options import (
    EncodingOption,
    JsonOption,
    LoadArgument,
    RunArgument,
    read_typed,
)
from rung.cli.output import print_next_command, print_note, silence_libraries
from rung.files import cache_folder, check_writable_file, to_csv, write_atomically

if TYPE_CHECKING:
    from rung.evaluation.word_surprisal import WordScore


@verb("surprisal", "rung surprisal runs/python-docs/llama3 text.txt --out words.tsv")
def surprisal_command(
    run: RunArgument,
    file: Annotated[str, typer.Argument(help="A text, a table of words, or - for standard input.")],
    out: Annotated[
        str, typer.Option(metavar="FILE", help="The table to write, - for standard output.")
    ] = "-",
    column: Annotated[
        str, typer.Option(help="The column of a table that has the words, a word in each row.")
    ] = "",
    documents: Annotated[
        str, typer.Option(help="What a document is in a text: file or lines.")
    ] = "",
    uncorrected: Annotated[
        bool, typer.Option("--uncorrected", help="Also: a column of the bits without correction.")
    ] = False,
    encoding: EncodingOption = "",
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """The surprisal of each word of a text, as a table with tabs between its columns.

    The words are those between white space, each with the white space before it. That a word has
    ended is only told by the token after it; its probability is moved to the word it belongs to.
    """
    silence_libraries()
    from rung.api.run import load
    from rung.api.surprisal import surprisal
    from rung.cli.progress import Display
    from rung.data.files import save_stdin

    if out != "-":
        check_writable_file(Path(out), file)
    if typed_stdin := file == "-":
        file = str(save_stdin(sys.stdin.buffer, cache_folder() / "stdin"))
    reading = {"column": read_typed("--column", column), "documents": documents}
    opened = load(run, **load_options)
    with Display() as display:
        found = surprisal(opened, file, on_progress=display.show, encoding=encoding, **reading)
    rows = [_describe_word(score, uncorrected=uncorrected) for score in found]
    if out != "-":
        write_atomically(Path(out), to_csv(rows, delimiter="\t"))
    if as_json:
        print_json({"run": run, "words": rows})
    elif out == "-":
        print(to_csv(rows, delimiter="\t"), end="")
    else:
        mean = sum(score.bits for score in found) / max(1, len(found))
        print_note(f"Wrote {out}: {len(found):,} words, {mean:.2f} bits each on average")
        print_note("To the model a word of n bits had a chance of 1 in 2^n: each bit halves it.\n")
        if not typed_stdin and not column:
            print_next_command("eval", run, file)


def _describe_word(score: "WordScore", *, uncorrected: bool) -> dict[str, Any]:
    """A word as a row; only models that count have an order and a count."""
    counted = {"order": score.order, "count": score.count}
    return {
        "document": score.document,
        "position": score.position,
        "word": score.word,
        "bits": score.bits,
        **({"uncorrected": score.uncorrected} if uncorrected else {}),
        "tokens": score.tokens,
        "context": score.context,
        "unknown": score.is_unknown,
        **{name: value for name, value in counted.items() if value is not None},
    }
