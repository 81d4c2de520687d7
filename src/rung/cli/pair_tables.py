"""The table of a run on minimal pairs."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from rung.cli.output import escape_controls
from rung.cli.tables import FittedTable
from rung.evaluation.metrics import RENORMALIZED, describe_pairs, format_accuracy


def pairs_table(found: Mapping[str, Any]) -> FittedTable:
    """A line for each paradigm below its phenomenon, and one for all pairs."""
    table = FittedTable(f"{found['rung']} on the minimal pairs of {found['name']}", ("pairs",))
    table.add_column("paradigm", overflow="fold")
    table.add_figures("pairs")
    if found["ties"]:
        table.add_figures("ties")
    table.add_figures("accuracy")
    phenomena = {row["phenomenon"]: row for row in found["phenomena"]}
    last = ""
    for row in found["paradigms"]:
        group = phenomena.get(row["phenomenon"])
        if group and row["phenomenon"] != last:
            _add_row(table, Text(escape_controls(row["phenomenon"]), style="bold"), group, found)
        last = row["phenomenon"]
        indent = "  " if group else ""
        _add_row(table, Text(escape_controls(f"{indent}{row['paradigm']}")), row, found)
    table.add_section()
    _add_row(table, Text("all pairs", style="bold"), found, found)
    table.caption = Text(escape_controls("\n".join(_list_notes(found)))) or None
    return table


def _add_row(
    table: FittedTable, name: Text, row: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    ties = [f"{row['ties']:,}"] if found["ties"] else []
    table.add_cells(name, f"{row['pairs']:,}", *ties, format_accuracy(row))


def _list_notes(found: Mapping[str, Any]) -> list[str]:
    """The lines below the table: what was spelled, what is no distribution."""
    notes = [describe_pairs(found)]
    if found["spelled"]:
        notes.append(
            f"{found['spelled']:,} of {found['pairs']:,} pairs have words that the tokenizer does "
            "not keep, charged for their spelling"
        )
    if found["renormalized"]:
        notes.append(f"no distribution; {RENORMALIZED}")
    return notes
