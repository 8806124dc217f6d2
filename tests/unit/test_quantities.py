from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.quantities import DURATION_UNITS, SIZE_UNITS, Duration, Rate, Size, from_toml

counts = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("250 ms", 250_000_000),
        ("10s", 10_000_000_000),
        ("1.5 h", 5_400_000_000_000),
        ("0.1 us", 100),
        ("2 min", 120_000_000_000),
        (" 1 d ", 86_400_000_000_000),
        ("0 s", 0),
    ],
)
def test_a_duration_is_read_with_its_unit(text: str, ns: int) -> None:
    assert Duration.parse(text).ns == ns


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("64 KiB", 65_536), ("1.5 MiB", 1_572_864), ("256MB", 256_000_000), ("7 B", 7), ("1 TiB", 2**40)],
)
def test_a_size_is_read_with_its_unit(text: str, size_bytes: int) -> None:
    assert Size.parse(text) == size_bytes


def test_a_rate_is_a_size_per_second() -> None:
    assert Rate.parse("64 KiB/s") == 65_536


@pytest.mark.parametrize(
    ("kind", "text", "complaint"),
    [
        (Duration, "10", "'10' has no unit; a duration is written in ns, us, ms, s, min, h, d, such as '10 s'"),
        (Duration, "10 m", "has the unknown unit 'm'"),
        (Duration, "-1 s", "is not a duration"),
        (Duration, "1e3 s", "is not a duration"),
        (Duration, "0.5 ns", "finer than one ns"),
        (Duration, "999999999999 d", "too large"),
        (Duration, "", "is not a duration"),
        (Duration, "١ s", "is not a duration"),
        (Size, "64 kib", "has the unknown unit 'kib'"),
        (Size, "0.5 B", "finer than one B"),
        (Rate, "64 KiB", "has the unknown unit 'KiB'"),
    ],
)
def test_what_is_no_quantity_is_refused_with_what_to_write(
    kind: type[Duration | Size | Rate], text: str, complaint: str
) -> None:
    with pytest.raises(ValueError) as caught:
        kind.parse(text)
    assert complaint in str(caught.value)


@given(counts)
def test_what_is_shown_reads_back_as_the_same(count: int) -> None:
    assert Duration.parse(str(Duration(count))) == Duration(count)
    assert Size.parse(str(Size(count))) == Size(count)
    assert Rate.parse(str(Rate(count))) == Rate(count)


@given(counts)
def test_what_is_shown_has_no_shorter_whole_number(count: int) -> None:
    number = int(str(Duration(count)).split()[0])
    assert all(count % factor or count // factor >= number for factor in DURATION_UNITS.values())
    number = int(str(Size(count)).split()[0])
    assert all(count % factor or count // factor >= number for factor in SIZE_UNITS.values())


@given(st.text(max_size=30), st.sampled_from([Duration, Size, Rate]))
def test_any_text_is_a_quantity_or_refused(text: str, kind: type[Duration | Size | Rate]) -> None:
    try:
        quantity = kind.parse(text)
    except ValueError:
        return
    assert quantity == kind.parse(str(quantity))


@pytest.mark.parametrize("kind", [Duration, Size, Rate])
@pytest.mark.parametrize("count", [-1, 2**63])
def test_a_quantity_is_bounded(kind: type[Duration | Size | Rate], count: int) -> None:
    with pytest.raises(ValueError, match="lies between"):
        kind(count)


def test_only_a_size_may_be_a_plain_number() -> None:
    assert from_toml(Size, 4096) == Size(4096)
    for kind, value in ((Duration, 10), (Rate, 10), (Size, True), (Size, 1.5), (Duration, True)):
        with pytest.raises(ValueError, match="with its unit"):
            from_toml(kind, value)


def test_durations_compare_and_count_as_keys() -> None:
    assert Duration(1) < Duration(2) <= Duration(2) != Duration(3)
    assert {Duration(5): "a"}[Duration.parse("5 ns")] == "a"
    assert Duration(1) != 1
    assert Duration.parse("1.5 s").s == 1.5
