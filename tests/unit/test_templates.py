"""Topic templates: what they subscribe to, what they match, and which are refused."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.drivers.templates import TopicTemplate


@pytest.mark.parametrize(
    ("text", "subscription", "topic", "names"),
    [
        ("plant/{device}/{channel}", "plant/+/+", "plant/a/t", ("a", "t")),
        ("plant/{device}/{channel}", "plant/+/+", "plant/a", None),
        ("plant/{device}/{channel}", "plant/+/+", "plant/a/t/x", None),
        ("plant/{device}/{channel}", "plant/+/+", "plant//t", None),
        ("{channel}/of/{device}", "+/of/+", "t/of/a", ("a", "t")),
        ("{device}/tele", "+/tele", "a.b/tele", ("a.b", "")),
        ("plain", "plain", "plain", ("", "")),
        ("a.b/{device}", "a.b/+", "axb/d", None),
        ("lab/+/{channel}", "lab/+/+", "lab/any/t", ("", "t")),
        ("lab/{device}/#", "lab/+/#", "lab/a/x/y", ("a", "")),
        ("lab/{device}/#", "lab/+/#", "lab/a", ("a", "")),
        ("#", "#", "any/thing", ("", "")),
        ("/{device}", "/+", "/a", ("a", "")),
    ],
)
def test_a_template_names_device_and_channel(
    text: str, subscription: str, topic: str, names: tuple[str, str] | None
) -> None:
    template = TopicTemplate(text)
    assert template.filter == subscription
    assert template.match(topic) == names


@pytest.mark.parametrize(
    "text", ["", "a/#/b", "a+/b", "x{device}", "{device}/{device}", "{gateway}/x", "{device", "a\x00b", "ä" * 40_000]
)
def test_a_wrong_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        TopicTemplate(text)


@pytest.mark.parametrize(
    ("one", "two", "topic"),
    [
        ("plant/{device}/{channel}", "plant/#", "plant/b/c"),
        ("plant/#", "plant", "plant"),
        ("a/+/c", "a/b/{channel}", "a/b/c"),
        ("+/b", "a/+", "a/b"),
        ("a/b/#", "a/+/c/d", "a/b/c/d"),
        ("a/b", "a/b", "a/b"),
        ("#", "{device}/x", "a/x"),
        ("a/+/c", "a/b/d", None),
        ("a/+", "a/+/c", None),
        ("a/b/#", "a", None),
        ("#", "$SYS/#", None),
        ("{device}/x", "$SYS/x", None),
    ],
)
def test_templates_that_share_a_topic_name_one(one: str, two: str, topic: str | None) -> None:
    assert TopicTemplate(one).common_topic(TopicTemplate(two)) == topic
    assert TopicTemplate(two).common_topic(TopicTemplate(one)) == topic


levels = st.lists(st.sampled_from(["a", "b", "+"]), min_size=1, max_size=4)
filters = st.builds(lambda plain, more: "/".join([*plain, *more]), levels, st.sampled_from([[], ["#"]]))


@given(filters, filters)
def test_templates_share_a_topic_exactly_if_one_of_all_short_topics_matches_both(one: str, two: str) -> None:
    first, second = TopicTemplate(one), TopicTemplate(two)
    topics = ("/".join(made) for size in range(1, 6) for made in product("abz", repeat=size))
    shared = any(first.match(topic) is not None and second.match(topic) is not None for topic in topics)
    common = first.common_topic(second)
    assert (common is not None) == shared
    assert common is None or (first.match(common) is not None and second.match(common) is not None)


names = st.text(st.characters(codec="utf-8", exclude_characters="/+#\x00"), min_size=1, max_size=12)


@given(device=names, channel=names, prefix=names.filter(lambda name: "{" not in name and "}" not in name))
def test_any_names_come_back_out_of_the_topic_that_they_made(device: str, channel: str, prefix: str) -> None:
    template = TopicTemplate(f"{prefix}/{{device}}/x/{{channel}}")
    assert template.match(f"{prefix}/{device}/x/{channel}") == (device, channel)
