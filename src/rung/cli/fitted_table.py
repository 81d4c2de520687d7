"""Tables as wide as the terminal and no wider: what may be left out gives way to what may not."""

import os
from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from rung.cli.output import escape_controls, find_overflow

WIDTH = 160  # of a table that goes to a file or to another program
LEAST = 16  # characters below which a column that may be cut is left out


class FittedTable(Table):
    """A table that leaves columns out, the first of `gives_way` first, where the terminal is too
    narrow for all.

    A column with a `max_width` is cut before that, a column that may wrap is wrapped; the others
    are always whole. Cells, heads and titles are taken as they are: nothing in them is markup.
    """

    def __init__(
        self, title: str = "", gives_way: Sequence[str] = (), title_style: str = ""
    ) -> None:
        super().__init__(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        self.title, self.title_justify, self.title_style = (
            Text(escape_controls(title)),
            "left",
            title_style,
        )
        self.caption_justify, self.caption_style = "left", ""
        self.gives_way = gives_way
        self.captions: dict[
            str, str
        ] = {}  # by the head of a column: a line below the table, where that is shown

    def add_figures(self, *heads: str) -> None:
        """Columns of figures, which are never cut."""
        for head in heads:
            self.add_column(head, justify="right", no_wrap=True)

    def add_cells(self, *cells: str | Text) -> None:
        """A row; control characters in it are escaped."""
        self.add_row(
            *(cell if isinstance(cell, Text) else Text(escape_controls(cell)) for cell in cells)
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table with as many columns as there is room for."""
        columns, left_out = list(self.columns), list(self.gives_way)
        while left_out and _room_taken(columns) > options.max_width:
            columns = [column for column in columns if column.header != left_out[0]]
            left_out.pop(0)
        for column in (column for column in columns if column.max_width):
            spare = options.max_width - _room_taken(columns) + LEAST
            columns[columns.index(column)] = replace(
                column, max_width=min(column.max_width or 0, spare), overflow=find_overflow(console)
            )
        shown = Table(
            box=self.box, padding=(0, 1, 0, 0), pad_edge=False, show_footer=self.show_footer
        )
        shown.title, shown.title_justify, shown.title_style = (
            self.title,
            self.title_justify,
            self.title_style,
        )
        heads = [column.header for column in columns]
        lines = [self.caption, *(line for head, line in self.captions.items() if head in heads)]
        shown.caption = Text("\n").join(Text(str(line)) for line in lines if line) or None
        shown.caption_justify, shown.caption_style = "left", ""
        shown.columns = [replace(column, _index=place) for place, column in enumerate(columns)]
        shown.rows = self.rows
        yield from shown.__rich_console__(console, options)


def _room_taken(columns: Sequence[Column]) -> int:
    """Characters that the columns need at least, with what stands between and beside them."""
    return sum(_least_width(column) + 2 for column in columns)


def _least_width(column: Column) -> int:
    cells = [column.header, column.footer, *column.cells]
    widest = max((cell_len(str(cell)) for cell in cells), default=0)
    return widest if column.no_wrap and not column.max_width else min(widest, LEAST)


def show(table: Table) -> None:
    """Print on standard output, as wide as the table is where that is no terminal and COLUMNS does
    not say.
    """
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDTH)
    console.print(table)
