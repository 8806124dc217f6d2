"""JSON messages: one value, many values, or an array of objects.

    23.5                                                       value = "value" (bare numbers are read too)
    {"value": 23.5, "timestamp": 1731405912123}                value = "value", time = "timestamp"
    {"sensor": "t1", "v": 23.5}                                value = "v", channel = "sensor"
    {"t": 23.5, "motor": {"rpm": 1480, "on": true}}            channels `t`, `motor.rpm`, `motor.on`
    {"at": "...", "list": [{"n": "t1", "v": 1}, {...}]}        records = "list", channel = "n", value = "v", time = "at"

Without `value` every number, boolean and text is a value of the channel that its keys name, joined by dots
(in arrays, the position). A record's time is its own, or else that of the message. `null` is no reading.
A message that is an array is an array of records. Texts stay texts: what they mean is the profile's.

The message with a single value is what floods a broker, so it has a typed decoder of its own:
0.6 us with its time, where the way through the tree takes 1.8 us.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeAlias

import msgspec

from devices.codecs import Example
from devices.codecs.timestamps import TimeFormat, parser
from devices.errors import DecodeError
from devices.model import Rows

_SCALARS: Final = frozenset((float, bool, str, type(None)))
_PLAIN_KEY = re.compile(r"[^.\\\"\x00-\x1f]+")
"""Keys that are no path, and that msgspec takes for a field's name."""
Scalar: TypeAlias = float | bool | str

_MAX_DEPTH: Final = 16
"""Deeper nesting is not telemetry; msgspec's own limit is the interpreter's stack."""
_MAX_VALUES: Final = 10_000
"""Values in one message: 64 KiB of `0,` would be 30,000, each with a channel of its own."""
_MAX_PATH: Final = 256
"""Characters of joined keys: each value carries its whole path, so long keys would multiply."""


class JsonOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[codec]` of a profile with `name = "json"`. A key path is keys joined by dots."""

    time: str = ""
    """Key path of the time; "", or missing in a message: the time of arrival."""
    time_format: TimeFormat = "auto"
    """`auto`, `s`, `ms`, `us` or `ns` since the epoch, or `iso8601`."""
    value: str = ""
    """Key path of the only value of a message or record; "": every number, boolean and text in it is one."""
    channel: str = ""
    """Key path of the text that names the channel; "": the topic names it. Needs `value`."""
    records: str = ""
    """Key path of an array of objects, each of which is read like a message."""

    def __post_init__(self) -> None:
        if self.channel and not self.value:
            raise ValueError("channel needs value: which key holds the value of the channel that it names?")
        paths = [path for path in (self.time, self.value, self.channel, self.records) if path]
        if len(set(paths)) != len(paths):
            raise ValueError("time, value, channel and records must be different keys")


class JsonCodec:
    """See the module's docstring."""

    Options: ClassVar[type[msgspec.Struct]] = JsonOptions
    framing: ClassVar[str] = "json_line"
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            b'{"value": 23.5, "timestamp": 1731405912123}',
            [("", 1731405912_123000000, 23.5)],
            {"value": "value", "time": "timestamp"},
        ),
        Example(b'"running"', [("", 0, "running")], {"value": "value"}),
        Example(b'{"id": "t1", "d": {"v": 2}}', [("t1", 0, 2.0)], {"value": "d.v", "channel": "id"}),
        Example(
            b'{"t": 23.5, "motor": {"rpm": [1480, 1475], "on": true}, "spare": null}',
            [("t", 0, 23.5), ("motor.rpm.0", 0, 1480.0), ("motor.rpm.1", 0, 1475.0), ("motor.on", 0, True)],
        ),
        Example(
            b'{"at": "2024-11-12T10:05:12Z", "list": [{"t": 1.5}, {"t": 2.5, "at": 1731405913}]}',
            [("t", 1731405912_000000000, 1.5), ("t", 1731405913_000000000, 2.5)],
            {"records": "list", "time": "at"},
        ),
    )

    def __init__(self, options: JsonOptions) -> None:
        self._options = options
        self._time_path = options.time
        self._parse_time = parser(options.time_format)
        self._tree: Callable[[bytes], Any] = msgspec.json.Decoder().decode
        self._single: Callable[[bytes], Any] | None = _single_decoder(options)

    def decode(self, message: bytes, rows: Rows) -> None:
        """See `devices.codecs.Codec`; ints become floats."""
        single = self._single
        try:
            if not message.isascii():
                message.decode()  # msgspec looks no closer at keys that it passes over: a damaged one would be missed
            found: Any = self._tree(message) if single is None else single(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError(f"not the JSON that is expected: {error}") from None
        if single is None or type(found) is list:
            self._from_tree(found, rows)
            return
        time_ns = 0
        if type(found) in _SCALARS:
            value = found
        else:
            value = found.value
            if value is msgspec.UNSET:
                raise DecodeError(f"the message has no key `{self._options.value}`")
            if self._time_path and found.time is not None:
                time_ns = self._parse_time(found.time)
        if value is not None:
            rows.channel.append("")
            rows.time_ns.append(time_ns)
            rows.value.append(value)

    def _from_tree(self, tree: object, rows: Rows) -> None:
        options = self._options
        records = tree
        if options.records:
            records = _find(tree, options.records)
            if not isinstance(records, list):
                raise DecodeError(f"the message has no array `{options.records}`")
        read = Rows()
        if isinstance(records, list):
            message_time_ns = self._time_ns(tree, 0)
            for record in records:
                if not isinstance(record, dict):
                    raise DecodeError("an array of objects is expected, and one of its elements is none")
                self._from_record(record, self._time_ns(record, message_time_ns), read)
        elif isinstance(tree, dict) or (options.value and not options.channel):
            self._from_record(tree, self._time_ns(tree, 0), read)
        else:
            raise DecodeError("an object is expected, and the message is none")
        rows.channel += read.channel
        rows.time_ns += read.time_ns
        rows.value += read.value

    def _from_record(self, record: object, time_ns: int, rows: Rows) -> None:
        options = self._options
        if not options.value:
            self._leaves(record, "", time_ns, rows, _MAX_DEPTH)
            return
        value = _find(record, options.value) if isinstance(record, dict) else record
        if value is msgspec.UNSET:
            raise DecodeError(f"the message has no key `{options.value}`")
        channel = self._channel(record) if options.channel else ""
        if value is not None:
            if len(rows.value) == _MAX_VALUES:
                raise _too_many()
            rows.channel.append(channel)
            rows.time_ns.append(time_ns)
            rows.value.append(_scalar(value))

    def _channel(self, record: object) -> str:
        channel = _find(record, self._options.channel)
        if isinstance(channel, int) and not isinstance(channel, bool):
            channel = str(channel)
        if not isinstance(channel, str) or not 0 < len(channel) <= _MAX_PATH:
            raise DecodeError(f"no text at `{self._options.channel}` names the channel")
        return channel

    def _time_ns(self, record: object, default_ns: int) -> int:
        found = _find(record, self._options.time) if self._options.time else None
        if found is None or found is msgspec.UNSET:
            return default_ns
        if not isinstance(found, int | float | str):
            raise DecodeError(f"what stands at `{self._options.time}` is no time")
        return self._parse_time(found)

    def _leaves(self, tree: object, path: str, time_ns: int, rows: Rows, depth: int) -> None:
        """Append every scalar below `tree`, whose own path is `path` ("" or ending with a dot)."""
        if depth == 0:
            raise DecodeError(f"nested deeper than {_MAX_DEPTH} levels")
        if isinstance(tree, dict):
            items: Any = tree.items()
        elif isinstance(tree, list):
            items = enumerate(tree)
        else:
            raise DecodeError("an object is expected, and the message is none")
        names, values = rows.channel, rows.value
        for key, value in items:
            name = f"{path}{key}"
            if not 0 < len(name) <= _MAX_PATH:
                raise DecodeError(f"keys of 1 to {_MAX_PATH} characters are expected, not {len(name)}")
            kind = type(value)
            if kind is dict or kind is list:
                rows.time_ns += [time_ns] * (len(values) - len(rows.time_ns))
                self._leaves(value, f"{name}.", time_ns, rows, depth - 1)
            elif value is not None and name != self._time_path:
                names.append(name)
                values.append(_scalar(value) if kind is int else value)
        rows.time_ns += [time_ns] * (len(values) - len(rows.time_ns))
        if len(values) > _MAX_VALUES:
            raise _too_many()


def _too_many() -> DecodeError:
    return DecodeError(f"more than {_MAX_VALUES} values in one message", "oversize")


def _scalar(value: object) -> Scalar:
    if isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            raise DecodeError("a number is larger than a float64 holds") from None
    raise DecodeError("a number, boolean or text is expected as the value")


def _find(tree: object, path: str) -> object:
    """What stands at the key path, UNSET where there is nothing. A key that contains dots is found first."""
    if not isinstance(tree, dict):
        return msgspec.UNSET
    if path in tree:
        return tree[path]
    key, dot, rest = path.partition(".")
    return _find(tree.get(key), rest) if dot else msgspec.UNSET


def _single_decoder(options: JsonOptions) -> Callable[[bytes], Any] | None:
    """A decoder for one value at the top level, or None where the message must be read as a tree.

    It gives a bare scalar, an array of records, or a struct: `value`, UNSET where it is missing, and perhaps `time`.
    """
    if not _PLAIN_KEY.fullmatch(options.value) or options.channel or options.records:
        return None
    names = {"value": options.value}
    fields: list[tuple[str, Any, Any]] = [("value", float | bool | str | None | msgspec.UnsetType, msgspec.UNSET)]
    if options.time:
        if not _PLAIN_KEY.fullmatch(options.time):
            return None
        names["time"] = options.time
        fields.append(("time", int | float | str | None, None))
    message = msgspec.defstruct("Single", fields, rename=names, gc=False)
    return msgspec.json.Decoder(message | list[Any] | float | bool | str | None).decode
