"""Tables as wide as the terminal, narrow ones with fewer columns; and the same for a page."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from rung.cli.output import escape_controls, find_overflow

if TYPE_CHECKING:
    from rung.models.sizes import Size

TABLE_WIDTH = 160  # characters, of a table that goes to a file or to another program
LATEX_ESCAPES = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "‡": r"$\ddagger$",
    "–": "--",
}
MIN_COLUMN_WIDTH = 16  # characters, of a column that may be cut


class FittedTable(Table):
    """A table that leaves out the columns of `gives_way`, in that order, on a narrow terminal.

    A column with a `max_width` is cut before that, a column that may wrap is wrapped; the others
    are always whole. Nothing in cells, heads and titles is read as markup.
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
        # By a column's head: the line below the table while the column is shown.
        self.captions: dict[str, str] = {}

    def add_figures(self, *heads: str) -> None:
        """Add columns of figures, which are never cut."""
        for head in heads:
            self.add_column(head, justify="right", no_wrap=True)

    def add_cells(self, *cells: str | Text) -> None:
        """Add a row. Control characters in it are escaped."""
        self.add_row(
            *(cell if isinstance(cell, Text) else Text(escape_controls(cell)) for cell in cells)
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table with as many columns as there is room for."""
        columns, left_out = list(self.columns), list(self.gives_way)
        while left_out and _room_taken(columns) > options.max_width:
            columns = [column for column in columns if column.header != left_out[0]]
            left_out.pop(0)
        for column in (column for column in columns if column.max_width):
            spare = options.max_width - _room_taken(columns) + MIN_COLUMN_WIDTH
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
    """The width that the columns need at least, in characters, with the space between them."""
    return sum(_least_width(column) + 2 for column in columns)


def _least_width(column: Column) -> int:
    cells = [column.header, column.footer, *column.cells]
    widest = max((cell_len(str(cell)) for cell in cells), default=0)
    return widest if column.no_wrap and not column.max_width else min(widest, MIN_COLUMN_WIDTH)


def show(table: Table | Text) -> None:
    """Print a table, or a paragraph, on standard output.

    Where that is no terminal and COLUMNS is not set, it is as wide as it needs to be.
    """
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=TABLE_WIDTH)
    console.print(table)


def format_table(table: Table, form: Literal["markdown", "latex"]) -> str:
    """Write a table for a page of Markdown, or for LaTeX with the package booktabs.

    Its title stands above it and its caption below it, as a paragraph or as comments.
    """
    heads = [str(column.header) for column in table.columns]
    rows = [list(map(str, cells)) for cells in zip(*(c.cells for c in table.columns), strict=True)]
    sides = ["r" if column.justify == "right" else "l" for column in table.columns]
    title, *notes = [str(table.title or ""), *str(table.caption or "").splitlines()]
    if form == "latex":
        lines = [" & ".join(map(_escape_latex, cells)) + r" \\" for cells in (heads, *rows)]
        return "\n".join(
            [
                *(f"% {line}" for line in title.splitlines()),
                rf"\begin{{tabular}}{{{''.join(sides)}}}",
                *(r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"),
                r"\end{tabular}",
                *(f"% {line}" for line in notes),
            ]
        )
    rule = ["---:" if side == "r" else "---" for side in sides]
    lines = [
        f"| {' | '.join(cells)} |"
        for cells in (map(_escape_markdown, heads), rule, *(map(_escape_markdown, r) for r in rows))
    ]
    return "\n".join([*([title, ""] if title else []), *lines, *(f"\n{line}" for line in notes)])


def _escape_latex(cell: str) -> str:
    """Escape LaTeX's own characters; a number with a sign is set as one."""
    if re.fullmatch(r"[+-][\d.,]+", cell):
        return f"${cell}$"
    return "".join(LATEX_ESCAPES.get(character, character) for character in cell)


def _escape_markdown(cell: str) -> str:
    return re.sub(r"([\\`*_|<\[])", r"\\\1", " ".join(cell.split()))


def names_table(kind: str, names: Mapping[str, str]) -> FittedTable:
    """A table of names and what they stand for."""
    table = FittedTable()
    table.add_column(kind, overflow="fold")
    table.add_column("what it is", overflow="fold")
    for name, description in names.items():
        table.add_cells(Text(name, style="bold"), description)
    return table


def sizes_table(sizes: Mapping[str, "Size"]) -> FittedTable:
    """A table of sizes with the memory that their weights take in float32 and in bfloat16."""
    table = FittedTable(
        gives_way=("weights", "GB in bfloat16", "vocabulary", "context", "GB in float32")
    )
    table.add_column("size", no_wrap=True)
    table.add_figures("parameters", "vocabulary", "context", "GB in float32", "GB in bfloat16")
    table.add_column("weights", no_wrap=True)
    for name, size in sizes.items():
        memory = [f"{size.parameters * width / 1e9:,.3f}" for width in (4, 2)]
        shown = "published" if size.is_published else ""
        table.add_cells(
            name,
            f"{size.parameters:,}",
            f"{size.vocab_size:,}",
            f"{size.context:,}",
            *memory,
            shown,
        )
    return table


def format_whole(value: float | None) -> str:
    """A count with separators; empty for None."""
    return "" if value is None else f"{value:,.0f}"
