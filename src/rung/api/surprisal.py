"""The surprisal of each word of a file: `rung.surprisal`."""

from pathlib import Path

from rung.api.options import check_options
from rung.api.run import READING, Run, load
from rung.data.files import ReadOptions
from rung.device import choose_device
from rung.evaluation.word_surprisal import WordScore
from rung.progress import OnProgress, for_run, ignore_progress
from rung.workflows.surprisal import score_words_of_file


def surprisal(
    run: str | Path | Run,
    file: str | Path,
    *,
    on_progress: OnProgress = ignore_progress,
    **reading: str,
) -> list[WordScore]:
    """Compute the surprisal of each word of a file in bits, corrected for leading white space.

    >>> words = rung.surprisal(rung.train("bigram", "my.txt"), "my.txt")
    >>> words[0].bits > 0 and words[0].position == 0
    True

    The words are those between white space, or the rows of a table's `column`. `reading` has
    `column`, `documents` (`file` or `lines`: what a document is in a text) and `encoding`.
    `pandas.DataFrame` makes a table of the list. Raises a child of `RungError` for a mistake of the
    user.
    """
    check_options("surprisal", reading, READING)
    opened = load(run)
    options = ReadOptions(
        column=reading.get("column") or None, encoding=reading.get("encoding") or None
    )
    return score_words_of_file(
        opened.model.to(choose_device()),
        opened.tokenizer,
        Path(file),
        reading.get("documents") or "",
        options,
        for_run(opened.name, on_progress),
    )
