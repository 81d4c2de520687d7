"""Tables of how much of a test text stands in a training text: counts, longest spans, scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from rung.cli.score_tables import count_documents, format_bits
from rung.cli.tables import FittedTable, show
from rung.evaluation.metrics import format_interval
from rung.evaluation.near_duplicates import LEAST_SIMILARITY
from rung.evaluation.overlap import OVERLAPPING_SHARE

NAMED_DOCUMENTS = 6  # document numbers that a row lists
SPAN_TEXT_WIDTH = 100  # characters of a span's text, on a terminal that is wide enough


def show_overlap(found: Mapping[str, Any]) -> None:
    """Print what `rung corpora check` found: a table of counts, one of spans, one of scores."""
    show(overlap_table(found))
    if found["longest"]:
        show(longest_spans_table(found))
    if "scores" in found:
        show(scores_table(found))
    show(Text(f"\n{describe_overlap(found)}"))


def describe_overlap(found: Mapping[str, Any]) -> str:
    """Say in a sentence what the counts and the scores mean."""
    count, of = len(found["overlapping"]), count_documents(found)
    if not count:
        return "No test document overlaps the training text: a score on it is of unseen text."
    told = f"A model may remember {count:,} of {of} instead of predicting them"
    scores = found.get("scores") or {}
    whole, clean = ((scores.get(key) or {}).get("bits_per_byte") for key in ("all", "without"))
    if whole is None or clean is None or not math.isfinite(clean - whole):
        return f"{told}, so that a score on all of them looks too good."
    more = clean - whole
    how = "higher" if more > 0 else "lower"
    return f"{told}; without them the score is {abs(more):.4f} bits per byte {how}."


def overlap_table(found: Mapping[str, Any]) -> FittedTable:
    """How much of the test text stands in the training text, in spans, copies and near copies."""
    test, train, unit = found["test"], found["train"], found["unit"]
    where = "" if test["corpus"] == train["corpus"] else f" of {train['corpus']}"
    table = FittedTable(f"{test['corpus']}: test text that stands in the training text{where}")
    table.add_column("what", no_wrap=True)
    table.add_figures("found")
    table.add_column("", overflow="fold")
    table.add_cells(
        f"spans of {found['least']} {unit} or more",
        f"{found['share']:.1%}",
        f"{found['shared']:,} of {found['size']:,} {unit}, in {len(found['with_spans']):,} of "
        f"{count_documents(found)}",
    )
    duplicates, near = found["duplicates"], found["near_duplicates"]
    table.add_cells("exact duplicates", f"{len(duplicates):,}", _name_documents(duplicates))
    if near is None:
        table.add_cells("near duplicates", "–", "not looked for: pip install 'rung[eval]'")
    else:
        named = _name_documents([each["test_document"] for each in near])
        similarity = f"Jaccard similarity {LEAST_SIMILARITY} or more of {unit[:-1]} 5-grams"
        table.add_cells("near duplicates", f"{len(near):,}", named or similarity)
    table.add_cells(
        "overlapping documents",
        f"{len(found['overlapping']):,}",
        f"{OVERLAPPING_SHARE:.0%} or more in such spans, or duplicates",
    )
    beginning = ", of which only the beginning was compared" * found["train_is_beginning"]
    table.add_cells("test text", f"{test['bytes']:,}", f"bytes in {count_documents(test)}")
    table.add_cells(
        "training text", f"{train['bytes']:,}", f"bytes in {count_documents(train)}{beginning}"
    )
    return table


def longest_spans_table(found: Mapping[str, Any]) -> FittedTable:
    """The longest spans, each with the first document of either split that holds it."""
    table = FittedTable("The longest spans, with the document of either split")
    table.add_figures(found["unit"], "test", "train")
    table.add_column("text", max_width=SPAN_TEXT_WIDTH, no_wrap=True)
    for span in found["longest"]:
        table.add_cells(
            f"{span['length']:,}",
            _name_first(span["test_document"], span["test_documents"]),
            _name_first(span["train_document"], span["train_documents"]),
            " ".join(span["text"].split()),
        )
    return table


def scores_table(found: Mapping[str, Any]) -> FittedTable:
    """The scores of a run with and without the documents that overlap."""
    table = FittedTable(f"{found['run']} on this test text")
    table.add_column("documents", no_wrap=True)
    table.add_figures("bits per byte")
    table.add_column("", overflow="fold")
    rows = {"all": "all", "without": "without overlapping ones"}
    for key, name in rows.items():
        score = found["scores"][key]
        if score is None:
            table.add_cells(name, "–", "no document is left")
            continue
        shown = f"{count_documents(score)}; {format_interval(score)}"
        table.add_cells(name, format_bits(score["bits_per_byte"], ".4f"), shown)
    return table


def _name_documents(numbers: Sequence[int]) -> str:
    """Name some documents by their numbers."""
    more = ", ..." if len(numbers) > NAMED_DOCUMENTS else ""
    named = ", ".join(map(str, numbers[:NAMED_DOCUMENTS])) + more
    return f"test document{'s' * (len(numbers) > 1)} {named}" if numbers else ""


def _name_first(number: int, count: int) -> str:
    """Name a document by its number, and how many more there are."""
    return f"{number}" + (f" +{count - 1}" if count > 1 else "")
