"""Topics, and the correlation data that ties a receipt to one frame of one content."""

from __future__ import annotations

import pytest

from devices.errors import FrameError
from devices.wire.topics import (
    DOWN,
    UP,
    Correlation,
    correlation,
    digest,
    legal_gateway,
    parse,
    parse_correlation,
    shared_filter,
    topic,
)


@pytest.mark.parametrize("leaf", UP + DOWN)
def test_a_topic_tells_gateway_and_leaf(leaf: str) -> None:
    assert topic("pump-station-7", leaf) == f"forebay/v1/pump-station-7/{leaf}"
    assert parse(topic("pump-station-7", leaf)) == ("pump-station-7", leaf)


@pytest.mark.parametrize(
    "received",
    [
        "",
        "forebay/v1/gw",
        "forebay/v1/gw/data/more",
        "forebay/v2/gw/data",
        "other/v1/gw/data",
        "forebay/v1//data",
        "forebay/v1/+/data",
        "forebay/v1/gw/data\n",
        "forebay/v1/gw/secret",
        "/forebay/v1/gw/data",
    ],
)
def test_a_topic_that_is_not_ours_is_refused(received: str) -> None:
    with pytest.raises(FrameError) as caught:
        parse(received)
    assert caught.value.reason == "topic"


@pytest.mark.parametrize("name", ["a", "7", "pump-station-7", "A.b_C-9", "x" * 64])
def test_a_plain_name_is_a_legal_gateway(name: str) -> None:
    assert legal_gateway(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a+", "#", "$SYS", "a b", "é", "a\n", "x" * 65, "a\x00"])
def test_a_name_that_a_topic_or_an_acl_might_take_wrongly_is_not(name: str) -> None:
    assert not legal_gateway(name)
    with pytest.raises(ValueError):
        topic(name, "data")


def test_there_are_no_other_topics() -> None:
    with pytest.raises(ValueError):
        topic("gw", "anything")


def test_ingesters_of_a_group_share_all_gateways() -> None:
    assert shared_filter("ingest", "data") == "$share/ingest/forebay/v1/+/data"


def test_correlation_data_is_fixed_for_ever() -> None:
    data = correlation(0x0123456789ABCDEF, 42, b"payload")
    assert data.hex() == "0123456789abcdef000000000000002a" + digest(b"payload").hex()
    assert digest(b"payload").hex() == "2ccb2999e1ae253d"
    assert parse_correlation(data) == Correlation(0x0123456789ABCDEF, 42, digest(b"payload"))


def test_another_content_has_another_correlation() -> None:
    assert correlation(1, 2, b"a") != correlation(1, 2, b"b")


@pytest.mark.parametrize("data", [b"", bytes(23), bytes(25)])
def test_correlation_data_of_another_length_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        parse_correlation(data)
    assert caught.value.reason == "correlation"
