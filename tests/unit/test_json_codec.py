from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.codecs.json import JsonCodec, JsonOptions
from devices.errors import DecodeError
from devices.model import Rows

NOON_MS = 1_731_405_912_000
NOON_NS = NOON_MS * 10**6


def decoded(message: bytes, **options: str) -> list[tuple[str, int, float | bool | str]]:
    rows = Rows()
    JsonCodec(msgspec.convert(options, JsonOptions)).decode(message, rows)
    return list(zip(rows.channel, rows.time_ns, rows.value, strict=True))


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (b"23.5", 23.5),
        (b" 7 ", 7.0),
        (b"true", True),
        (b'"off"', "off"),
        (b'{"value":23.5}', 23.5),
        (b'{"value":-0}', 0.0),
        (b'{"value":true,"unit":"Cel"}', True),
        (b'{"value":"run","more":[{"value":1}]}', "run"),
        (b'{"value":18446744073709551617}', 2.0**64),
    ],
)
def test_a_message_with_a_single_value_is_that_of_the_topic(message: bytes, value: float | bool | str) -> None:
    expected = [("", 0, value)]
    assert decoded(message, value="value") == expected
    assert type(decoded(message, value="value")[0][2]) is type(value)


def test_a_single_value_may_bear_its_time() -> None:
    message = f'{{"timestamp":{NOON_MS},"value":1.5}}'.encode()
    assert decoded(message, value="value", time="timestamp") == [("", NOON_NS, 1.5)]
    assert decoded(b'{"value":1.5}', value="value", time="timestamp") == [("", 0, 1.5)]
    assert decoded(b'{"value":1.5,"timestamp":null}', value="value", time="timestamp") == [("", 0, 1.5)]
    assert decoded(b"1.5", value="value", time="timestamp") == [("", 0, 1.5)]


def test_a_damaged_key_is_not_taken_for_one_that_is_missing() -> None:
    """It would get the time of arrival, and be a sample that the device never sent."""
    with pytest.raises(DecodeError, match="utf-8"):
        decoded(b'{"timest\xf9mp":1731405912123,"value":23.5}', value="value", time="timestamp")
    assert decoded('{"größe":1,"value":23.5}'.encode(), value="value") == [("", 0, 23.5)]


def test_null_is_no_reading() -> None:
    assert decoded(b'{"value":null}', value="value") == []
    assert decoded(b"null", value="value") == []
    assert decoded(b'{"a":null,"b":1}') == [("b", 0, 1.0)]


@pytest.mark.parametrize("value", ["a.b", 'quo"te', "back\\slash"])
def test_a_value_is_found_under_any_key(value: str) -> None:
    message = json.dumps({value: 2, "a": {"b": 3}}).encode()
    assert decoded(message, value=value) == [("", 0, 2.0)]


def test_a_value_is_found_below_nested_keys() -> None:
    assert decoded(b'{"d":{"v":3,"t":1731405912}}', value="d.v", time="d.t") == [("", NOON_NS, 3.0)]


def test_a_key_may_name_the_channel() -> None:
    assert decoded(b'{"sensor":"t1","v":3}', value="v", channel="sensor") == [("t1", 0, 3.0)]
    assert decoded(b'{"sensor":7,"v":3}', value="v", channel="sensor") == [("7", 0, 3.0)]


def test_every_scalar_of_an_object_is_a_channel() -> None:
    message = b'{"t":1,"m":{"rpm":[2,{"x":3.5}],"on":false,"s":"run"},"time":1731405912}'
    assert decoded(message, time="time") == [
        ("t", NOON_NS, 1.0),
        ("m.rpm.0", NOON_NS, 2.0),
        ("m.rpm.1.x", NOON_NS, 3.5),
        ("m.on", NOON_NS, False),
        ("m.s", NOON_NS, "run"),
    ]


def test_an_array_of_objects_is_read_element_by_element() -> None:
    message = b'{"at":1731405912,"d":{"list":[{"n":"a","v":1},{"n":"b","v":2,"at":1731405913}]},"other":5}'
    assert decoded(message, records="d.list", channel="n", value="v", time="at") == [
        ("a", NOON_NS, 1.0),
        ("b", NOON_NS + 10**9, 2.0),
    ]
    assert decoded(b'[{"a":1},{"a":2}]') == [("a", 0, 1.0), ("a", 0, 2.0)]
    assert decoded(b'[{"v":1},{"v":null}]', value="v") == [("", 0, 1.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, b""),
        ({}, b"{"),
        ({}, b'{"a":1}}'),
        ({}, b'{"a":NaN}'),
        ({}, b'{"a":1e999}'),
        ({}, b'{"a":' + b"9" * 400 + b"}"),
        ({}, b"\xff"),
        ({}, b'{"a":"\xff"}'),
        ({}, b'{"a":"\\ud800"}'),
        ({}, b"23.5"),
        ({}, b'{"":1}'),
        ({}, b'{"' + b"k" * 300 + b'":1}'),
        ({}, b'{"a":' * 100 + b"1" + b"}" * 100),
        ({}, b'{"a":1,"b":' + b"[" * 100_000),
        ({}, b'[{"a":1},2]'),
        ({"time": "t"}, b'{"a":1,"t":"yesterday"}'),
        ({"time": "t"}, b'{"a":1,"t":{}}'),
        ({"time": "t"}, b'{"a":1,"t":true}'),
        ({"records": "r"}, b'{"a":1}'),
        ({"records": "r"}, b'{"r":{"a":1}}'),
        ({"records": "r"}, b'{"r":[{"a":1},null]}'),
        ({"value": "v"}, b'{"a":1}'),
        ({"value": "v"}, b'{"v":{}}'),
        ({"value": "v"}, b'{"v":[1]}'),
        ({"value": "v"}, b'{"v":1e999}'),
        ({"value": "v"}, b"[" * 100_000),
        ({"value": "v", "time": "t"}, b'{"v":1,"t":0}'),
        ({"value": "v", "time": "t"}, b'{"v":1,"t":"soon"}'),
        ({"value": "v.w"}, b'{"v":{"x":1}}'),
        ({"value": "v.w"}, b'{"v":{"w":{}}}'),
        ({"value": "v", "channel": "c"}, b'{"v":1}'),
        ({"value": "v", "channel": "c"}, b'{"v":1,"c":""}'),
        ({"value": "v", "channel": "c"}, b'{"v":1,"c":true}'),
        ({"value": "v", "channel": "c"}, b'{"v":1,"c":"' + b"c" * 300 + b'"}'),
        ({"value": "v", "channel": "c"}, b"1"),
    ],
)
def test_what_cannot_be_read_is_refused_whole(options: dict[str, str], message: bytes) -> None:
    rows = Rows(["before"], [1], [2.0])
    with pytest.raises(DecodeError) as caught:
        JsonCodec(msgspec.convert(options, JsonOptions)).decode(message, rows)
    assert caught.value.reason == "malformed"
    assert len(str(caught.value)) < 300
    assert (rows.channel, rows.time_ns, rows.value) == (["before"], [1], [2.0])


@pytest.mark.parametrize(
    "options",
    [{}, {"value": "v"}, {"value": "v", "channel": "c"}],
)
def test_a_message_with_too_many_values_is_oversize(options: dict[str, str]) -> None:
    record = {"v": 1, "c": "x"} if options else {"a": 1}
    for count, fits in ((10_000, True), (10_001, False)):
        message = msgspec.json.encode([record] * count)
        if fits:
            assert len(decoded(message, **options)) == count
        else:
            with pytest.raises(DecodeError) as caught:
                decoded(message, **options)
            assert caught.value.reason == "oversize"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"channel": "c"}, "channel needs value"),
        ({"value": "x", "time": "x"}, "must be different keys"),
        ({"vaule": "x"}, "unknown field"),
        ({"time_format": "minutes"}, "Invalid enum value"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(options, JsonOptions)


scalars = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
trees = st.dictionaries(
    st.text(min_size=1, max_size=6),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)),
)


def slow_leaves(tree: Any, path: str) -> list[tuple[str, float | bool | str]]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in items for leaf in slow_leaves(value, f"{path}.{key}" if path else str(key))]
    return [] if tree is None else [(path, tree)]


@given(trees)
def test_any_tree_gives_the_leaves_that_a_slow_reading_gives(tree: dict[str, Any]) -> None:
    rows = decoded(json.dumps(tree).encode())
    assert [(channel, value) for channel, _, value in rows] == slow_leaves(tree, "")


@given(scalars.filter(lambda scalar: scalar is not None), st.integers(10**9, 4 * 10**9), st.text(max_size=4))
def test_the_fast_reading_of_a_single_value_equals_that_of_the_tree(
    value: float | bool | str, seconds: int, noise: str
) -> None:
    message = {"noise": noise, "v": value, "t": seconds}
    fast = decoded(json.dumps(message).encode(), value="v", time="t")
    slow = decoded(json.dumps({"r": [message]}).encode(), value="v", time="t", records="r")
    assert fast == slow == [("", seconds * 10**9, value)]
