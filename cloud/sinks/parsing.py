"""Line protocol -> measurement, tags, fields, time: as strict as InfluxDB, for sinks that keep points themselves.

    measurement,tag=value,tag=value field=1.5,count=3i,text="a \\"b\\"",ok=t 1735689600000000000
    `-------------- key ----------' `---------------- fields -------------' `----- ns UTC -----'

Escapes in the key: `\\,`, `\\ ` and, not in the measurement, `\\=`. In a quoted text: `\\"` and `\\\\`. A
backslash before anything else stands for itself. Unlike InfluxDB, which stamps it on arrival, a line
without its time is refused: writing it twice would make two points.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple, TypeAlias

from devices.errors import BadLines

FieldValue: TypeAlias = float | int | bool | str

# Loops are unrolled, `plain (escape plain)*`: alternatives tried at each character cost three times as much.
_LINE = re.compile(
    r"([^\\ ]*(?:\\.[^\\ ]*)*) +"
    r"([^\\\" ]*(?:(?:\\.|\"[^\\\"]*(?:\\.[^\\\"]*)*\")[^\\\" ]*)*) +"
    r"(-?\d{1,19})\s*",
    re.DOTALL,
)
_MEASUREMENT = re.compile(r"[^\\,]*(?:\\.[^\\,]*)*", re.DOTALL)
_TAG = re.compile(r",([^\\,=]*(?:\\.[^\\,=]*)*)=([^\\,=]*(?:\\.[^\\,=]*)*)", re.DOTALL)
_FIELD = re.compile(
    r"([^\\,=\"]*(?:\\.[^\\,=\"]*)*)=(\"[^\\\"]*(?:\\.[^\\\"]*)*\"|[^,\"]+)(?:,|$)",
    re.DOTALL,
)
_INTEGER = re.compile(r"-?\d{1,19}i")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_BOOLEANS = dict.fromkeys(("t", "T", "true", "True", "TRUE"), True) | dict.fromkeys(
    ("f", "F", "false", "False", "FALSE"), False
)
_INT64 = range(-(2**63), 2**63)


class Point(NamedTuple):
    """One line. `key` is its measurement and tags as they were written: enough to know the series again."""

    key: str
    fields: dict[str, FieldValue]
    time_ns: int


def parse_line(line: str) -> Point:
    """One line without its newline. Raises BadLines with what is wrong in it."""
    match = _LINE.fullmatch(line)
    if match is None or not match[1] or not match[2]:
        raise BadLines(f"not `measurement,tag=value field=value time`: {line[:200]}")
    key, fields, time = match.groups()
    time_ns = int(time)
    if time_ns not in _INT64:
        raise BadLines(f"the time {time} is out of range: {line[:200]}")
    return Point(key, _fields(fields, line), time_ns)


def parse_key(key: str) -> tuple[str, dict[str, str]]:
    """Measurement and tags of a `Point.key`, tags sorted by name. Raises BadLines."""
    match = _MEASUREMENT.match(key)
    if match is None or not match[0]:
        raise BadLines(f"no measurement: {key[:200]}")
    tags, at = {}, match.end()
    while at < len(key):
        tag = _TAG.match(key, at)
        if tag is None or not tag[1] or not tag[2]:
            raise BadLines(f"not a tag: {key[at : at + 200]}")
        name, value = _unescape(tag[1], ", ="), _unescape(tag[2], ", =")
        if name in tags:
            raise BadLines(f"the tag {name!r} stands twice: {key[:200]}")
        tags[name] = value
        at = tag.end()
    return _unescape(match[0], ", "), dict(sorted(tags.items()))


def _fields(text: str, line: str) -> dict[str, FieldValue]:
    fields: dict[str, FieldValue] = {}
    at = 0
    while at < len(text):
        match = _FIELD.match(text, at)
        if match is None or not match[1]:
            raise BadLines(f"not a field: {text[at : at + 100]} in {line[:200]}")
        fields[_unescape(match[1], ", =")] = _value(match[2], line)
        at = match.end()
    if text.endswith(","):
        raise BadLines(f"a field is missing after the last comma: {line[:200]}")
    return fields


def _value(text: str, line: str) -> FieldValue:
    if text[0] == '"':
        return re.sub(r'\\(["\\])', r"\1", text[1:-1]) if "\\" in text else text[1:-1]
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isfinite(number):
            return number
    elif _INTEGER.fullmatch(text):
        integer = int(text[:-1])
        if integer in _INT64:
            return integer
    elif text in _BOOLEANS:
        return _BOOLEANS[text]
    raise BadLines(f"not a value: {text[:100]} in {line[:200]}")


def _unescape(text: str, special: str) -> str:
    return re.sub(rf"\\([{special}])", r"\1", text) if "\\" in text else text
