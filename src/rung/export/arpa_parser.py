r"""The parser of ARPA files: each order's n-grams as columns.

It reads what other tools write: any text before `\data\`, tabs or spaces between fields, blanks on
empty lines, Windows line ends, orders without an n-gram, back-off weights left out. It refuses what
would give wrong figures, and names the line. Arrow takes the columns apart: there is no loop over
n-grams.
"""

import gzip
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.compute as pc
from numpy.typing import NDArray

from rung.errors import RunError

HEADING = re.compile(r"^[ \t]*\\(data\\|end\\|\d+-grams:)[ \t\r]*$", flags=re.MULTILINE)
COUNT = re.compile(r"\s*ngram\s+(\d{1,9})\s*=\s*(\d{1,18})\s*")
GZIP_MAGIC = b"\x1f\x8b"
# Of a text, for a byte that it has zipped: n-grams have 3 to 10, a file made to fill the memory up
# to 1,000.
MOST_UNZIPPED, LEAST_UNZIPPED = 50, 1 << 24
IMPOSSIBLE = -99.0  # log10, as SRILM writes it; others write -inf
SHOWN = 60  # characters of a line that is refused


@dataclass(frozen=True, kw_only=True)
class ArpaSection:
    """The n-grams of one order, and the numbers of their lines in the file."""

    log10_probability: NDArray[numpy.float32]
    words: list[Any]  # Arrow columns of strings: the first, second, ... word of every n-gram
    log10_backoff: NDArray[numpy.float32]  # 0, which is 1 in log10, where the file has none
    lines: NDArray[numpy.int64]


@dataclass(frozen=True)
class ArpaText:
    """An ARPA file's whole text, unzipped, and the path that errors name."""

    path: Path
    data: str

    @classmethod
    def read(cls, path: Path) -> "ArpaText":
        """Read the file at `path`, compressed or not.

        Raises `RunError` when it cannot be read.
        """
        try:
            raw = path.read_bytes()
            data = (_unzip(path, raw) if raw.startswith(GZIP_MAGIC) else raw).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
            raise RunError(f"{path} could not be read as an ARPA file: {error}") from error
        return cls(path, data)

    def refuse(self, line: int, why: str) -> RunError:
        """Make the error about a line, counted from 1."""
        return RunError(f"{self.path}, line {line}: {why}")

    def check(
        self, lines: NDArray[numpy.int64], bad: NDArray[numpy.bool_], why: Callable[[int], str]
    ) -> None:
        """Raise `RunError` about the first line that is `bad`.

        `why` is given its place among the `lines`.
        """
        for place in numpy.flatnonzero(bad)[:1].tolist():
            raise self.refuse(int(lines[place]), why(place))

    def sections(self) -> Iterator[ArpaSection]:
        """Yield the sections, from order 1 to the highest that the header counts.

        Raises `RunError` where the file breaks off, contradicts its header, or has a line that is
        no n-gram.
        """
        headings = list(HEADING.finditer(self.data))
        if self.data.lstrip().startswith("iARPA"):
            raise RunError(
                f"{self.path} is IRSTLM's own iARPA: write ARPA with `compile-lm --text=yes`"
            )
        if not headings or headings[0][1] != "data\\":
            raise RunError(
                f"{self.path} is not a whole ARPA file: it has no line \\data\\ before its n-grams"
            )
        if len(headings) < 2 or headings[-1][1] != "end\\":
            last = self.data.count("\n") + 1
            raise RunError(
                f"{self.path} is not a whole ARPA file: it breaks off at line {last}, before "
                f"\\end\\"
            )
        if trailing := self.data[headings[-1].end() :].strip():
            raise self.refuse(
                self._line(headings[-1].start()), f"{trailing[:SHOWN]!r} follows \\end\\"
            )
        spans = [(h, after.start()) for h, after in itertools.pairwise(headings)]
        (header, end), *rest = spans
        for order, promised in enumerate(self._counts(header.end(), end), start=1):
            heading = f"{order}-grams:"
            if promised == 0 and not (
                rest and rest[0][0][1] == heading
            ):  # some tools leave an empty order out
                yield self._parse(len(self.data), len(self.data), order)
                continue
            found, end = rest.pop(0) if rest else (headings[-1], len(self.data))
            if found[1] != heading:
                raise self.refuse(
                    self._line(found.start()), f"\\{found[1]} stands where \\{heading} must"
                )
            section = self._parse(found.end(), end, order)
            if len(section.lines) != promised:
                raise self.refuse(
                    self._line(found.start()),
                    f"{len(section.lines):,} n-grams of order {order} follow, but \\data\\ counts "
                    f"{promised:,}",
                )
            yield section
        if rest:
            raise self.refuse(
                self._line(rest[0][0].start()), f"\\data\\ does not count \\{rest[0][0][1]}"
            )

    def _line(self, place: int) -> int:
        """Return the number of the line, from 1, of a place in the text."""
        return self.data.count("\n", 0, place) + 1

    def _counts(self, start: int, end: int) -> list[int]:
        """Return how many n-grams of each order the header promises."""
        counts: list[int] = []
        first = self._line(start)
        for number, line in enumerate(self.data[start:end].split("\n"), start=first):
            if not line.strip():
                continue
            found = COUNT.fullmatch(line)
            if not found or int(found[1]) != len(counts) + 1:
                raise self.refuse(
                    number,
                    f"{line.strip()[:SHOWN]!r} is not 'ngram {len(counts) + 1}=' and a count",
                )
            counts.append(int(found[2]))
        if not counts or not counts[0]:
            raise self.refuse(
                first, "\\data\\ counts no words: there must be 'ngram 1=' and how many"
            )
        return counts

    def _parse(self, start: int, end: int, order: int) -> ArpaSection:
        """Parse the lines between two headings.

        Each is a probability, `order` words, and perhaps a back-off weight.
        """
        text = self.data[start:end].replace("\t", " ").replace("\r", "")
        lines = pc.split_pattern(pyarrow.array([text], type=pyarrow.large_string()), "\n").flatten()
        lines = pc.ascii_trim(lines, " ")
        full = numpy.flatnonzero(pc.binary_length(lines).to_numpy())
        numbers = full + self._line(start)
        lines = lines.take(pyarrow.array(full))
        if "  " in text:
            lines = pc.replace_substring_regex(lines, " +", " ")
        fields = pc.split_pattern(lines, " ")
        sizes = pc.list_value_length(fields).to_numpy(zero_copy_only=False)
        what = f"{order} word{'s' if order > 1 else ''}, and perhaps a back-off weight"
        self.check(
            numbers,
            (sizes != order + 1) & (sizes != order + 2),
            lambda place: (
                f"{_show(lines, place)} is no line of \\{order}-grams: a probability, {what}"
            ),
        )
        probability = self._numbers(fields, 0, numbers, least=IMPOSSIBLE)
        self.check(
            numbers,
            probability > 0,
            lambda place: (
                f"{_show(lines, place)} has a probability above 1: its log10 must not be above 0"
            ),
        )
        backoff = numpy.zeros(len(full), dtype=numpy.float32)
        weighted = numpy.flatnonzero(sizes == order + 2)
        backoff[weighted] = self._numbers(
            fields.take(pyarrow.array(weighted)), order + 1, numbers[weighted]
        )
        words = [pc.list_element(fields, place) for place in range(1, order + 1)]
        return ArpaSection(
            log10_probability=probability, words=words, log10_backoff=backoff, lines=numbers
        )

    def _numbers(
        self, fields: Any, place: int, lines: NDArray[numpy.int64], least: float | None = None
    ) -> NDArray[numpy.float32]:
        """Parse one field of each line as a number; -inf becomes `least` where that is given.

        Raises `RunError` for a field that is no finite number.
        """
        column = pc.list_element(fields, place)
        try:
            values = column.cast(pyarrow.float32()).to_numpy()
        except pyarrow.ArrowInvalid:
            pairs = zip(column.to_pylist(), lines, strict=True)
            values = numpy.array(
                [self._number(text, int(line)) for text, line in pairs], dtype=numpy.float32
            )
        if least is not None:
            values = numpy.where(numpy.isneginf(values), numpy.float32(least), values)
        self.check(
            lines,
            ~numpy.isfinite(values),
            lambda place: f"{_show(column, place)} is no finite number",
        )
        return values

    def _number(self, text: str, line: int) -> float:
        try:
            return float(text)
        except ValueError:
            raise self.refuse(line, f"the number {text[:SHOWN]!r} cannot be read") from None


def _unzip(path: Path, raw: bytes) -> bytes:
    """Unzip a file; raise `RunError` where it is far longer than n-grams can be."""
    most = max(MOST_UNZIPPED * len(raw), LEAST_UNZIPPED)
    with gzip.open(io.BytesIO(raw)) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise RunError(
            f"{path} is no ARPA file: its {len(raw):,} bytes unzip to more than {most:,}"
        )
    return data


def _show(column: Any, place: int) -> str:
    """Quote the beginning of one of an Arrow column's strings, for an error."""
    return repr(column[place].as_py()[:SHOWN])
