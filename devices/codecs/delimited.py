"""Lines of delimited text with named columns, as data loggers and old instruments send them.

    12.5 ; 40.1 ;      ; run          columns = ["temperature", "humidity", "flow", "state"]
    ────   ────   ────   ───          delimiter = ";"
    float  float  empty: no reading   text

Every line must have exactly as many fields as there are columns: half a line is not a sample. A line of
bare numbers, one a line, is a single column. Fields are not quoted.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import msgspec

from devices.codecs import Example
from devices.codecs.timestamps import TimeFormat, parser
from devices.errors import DecodeError
from devices.model import Rows

_MAX_DIGITS: Final = 30
"""A whole number as long as any time is read exactly; Python refuses to read one of thousands of digits."""


class DelimitedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[codec]` of a profile with `name = "delimited"`."""

    columns: list[str]
    """Names of the columns, in order; "" for one that is not read."""
    delimiter: str = ","
    """What stands between two fields; " " for any number of blanks and tabs."""
    time: str = ""
    """The column that holds the time; "": the time of arrival."""
    time_format: TimeFormat = "auto"
    """`auto`, `s`, `ms`, `us` or `ns` since the epoch, or `iso8601`."""
    comment: str = "#"
    """Lines that begin with this are not data; "": every line is data."""
    decimal: Literal[".", ","] = "."
    """The decimal mark."""

    def __post_init__(self) -> None:
        named = [column for column in self.columns if column]
        if not named:
            raise ValueError("columns must name at least one column")
        if len(set(named)) != len(named):
            raise ValueError("columns must name each column once")
        if not self.delimiter or "\n" in self.delimiter:
            raise ValueError("delimiter must not be empty or a line end")
        if self.delimiter == self.decimal:
            raise ValueError("delimiter and decimal must differ")
        if self.time and self.time not in named:
            raise ValueError(f"time must be one of the columns, and `{self.time}` is not")


class DelimitedCodec:
    """See the module's docstring."""

    Options: ClassVar[type[msgspec.Struct]] = DelimitedOptions
    framing: ClassVar[str] = "line_after_end"
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            b"12,5;40,1;;run",
            [("temperature", 0, 12.5), ("humidity", 0, 40.1), ("state", 0, "run")],
            {"columns": ["temperature", "humidity", "flow", "state"], "delimiter": ";", "decimal": ","},
        ),
        Example(
            b"2024-11-12T10:05:12Z 12.5\t1e3",
            [("a", 1731405912_000000000, 12.5), ("b", 1731405912_000000000, 1000.0)],
            {"columns": ["at", "a", "b"], "delimiter": " ", "time": "at"},
        ),
    )

    def __init__(self, options: DelimitedOptions) -> None:
        self._columns = options.columns
        self._separator = None if options.delimiter == " " else options.delimiter
        self._comment = options.comment
        self._comma = options.decimal == ","
        self._time_index = options.columns.index(options.time) if options.time else -1
        self._time_format = options.time_format
        self._parse_time = parser(options.time_format)

    def decode(self, message: bytes, rows: Rows) -> None:
        """One row a named column that holds something; a number where it is one, else the text."""
        try:
            text = message.decode("utf-8")
        except UnicodeDecodeError:
            raise DecodeError("the line is not UTF-8 text; is the baud rate right?") from None
        if self._comment and text.startswith(self._comment):
            return
        fields = text.split(self._separator)
        if len(fields) != len(self._columns):
            raise DecodeError(f"expected {len(self._columns)} fields, found {len(fields)}: {text[:60]!r}")
        time_ns = self._time_ns(fields[self._time_index].strip()) if self._time_index >= 0 else 0
        for index, (channel, cell) in enumerate(zip(self._columns, fields, strict=True)):
            stripped = cell.strip()
            if channel and stripped and index != self._time_index:
                rows.channel.append(channel)
                rows.time_ns.append(time_ns)
                rows.value.append(self._value(stripped))

    def _value(self, cell: str) -> float | str:
        number = cell
        if self._comma:
            if "." in cell:
                return cell
            number = cell.replace(",", ".")
        try:
            return cell if "_" in cell else float(number)
        except ValueError:
            return cell

    def _time_ns(self, cell: str) -> int:
        if not cell:
            raise DecodeError("the time's column is empty")
        if self._time_format == "iso8601":
            return self._parse_time(cell)
        number = self._value(cell)
        if isinstance(number, float) and len(cell) <= _MAX_DIGITS and cell.isascii() and cell.isdigit():
            return self._parse_time(int(cell))
        return self._parse_time(number)
