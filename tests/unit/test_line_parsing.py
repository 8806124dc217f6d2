"""The parser of line protocol that sinks of our own use: it takes what InfluxDB takes, and refuses the rest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.sinks.parsing import parse_key, parse_line
from devices.errors import BadLines


def test_escapes_of_keys_and_texts_are_undone() -> None:
    point = parse_line(r'a\,b\ c=d,t\=g=v\,\ \=\x f\,1="q\"\\n",g=t 5')
    assert parse_key(point.key) == ("a,b c=d", {"t=g": "v, =\\x"})
    assert point.fields == {"f,1": 'q"\\n', "g": True}
    assert point.time_ns == 5


def test_numbers_are_integers_only_with_their_mark() -> None:
    fields = parse_line("m a=1,b=1i,c=-1.5e-3,d=.5,e=5.,f=false -5").fields
    assert fields == {"a": 1.0, "b": 1, "c": -0.0015, "d": 0.5, "e": 5.0, "f": False}
    assert [type(value) for value in fields.values()] == [float, int, float, float, float, bool]


@pytest.mark.parametrize(
    "line",
    [
        "m",
        "m v=1",
        "m  5",
        "m v= 5",
        "m =1 5",
        "m v=1, 5",
        "m v 5",
        "m v=NaN 5",
        "m v=inf 5",
        "m v=1e999 5",
        "m v=9223372036854775808i 5",
        "m v=1 9223372036854775808",
        'm v="open 5',
        "m v=1 5 6",
        "m v=null 5",
    ],
)
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(BadLines):
        parse_line(line)


@pytest.mark.parametrize("key", [",a=b", "m,a", "m,a=", "m,=b", "m,a=b,", "m,a=b=c", "m,a=b,a=c"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(BadLines):
        parse_key(key)


@given(st.text(max_size=60) | st.text('m,v= 1i"\\t-.e5', max_size=60))
def test_any_text_is_a_point_or_bad_lines(text: str) -> None:
    with contextlib.suppress(BadLines):
        parse_key(parse_line(text).key)
