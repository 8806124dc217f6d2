"""Sources that would take one message for two.

A broker sends a message to each session that asks for its topic. Two sources may well read one topic, each in its own
way, as long as they make different series of it: a device of their own name, or other channels. Where the topic names
device and channel alike in both, and their profiles know a channel in common, each message would count twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from devices.drivers.templates import TopicTemplate
from devices.errors import ConfigError
from devices.profiles import Profile
from devices.tables import key_path
from devices.wire.dial import parse_broker

if TYPE_CHECKING:
    from edge.config import SourceConfig


def refuse_overlaps(sources: Mapping[str, SourceConfig], file: str) -> None:
    """Raises ConfigError for two sources that would make the same series out of one topic of one broker."""
    listening = [(name, source) for name, source in sources.items() if source.driver == "mqtt"]
    for (name, source), (other_name, other) in combinations(listening, 2):
        broker = parse_broker(source.options.broker)
        if broker != parse_broker(other.options.broker) or not _share_a_channel(source.profile, other.profile):
            continue
        if (shared := _shared(source.options.topics, other.options.topics)) is not None:
            template, other_template, topic = shared
            one, two = key_path("source", name), key_path("source", other_name)
            raise ConfigError(
                f"{one} and {two} would both take a message of {topic!r} at {broker} for samples of the same series, "
                f"and count it twice ({template!r}, {other_template!r}): {file}; leave the topic to one of them, or "
                "let their profiles have different channels"
            )


def _shared(topics: list[str], other_topics: list[str]) -> tuple[str, str, str] | None:
    """Two templates, and a topic in which both see the same device and channel."""
    other_templates = [TopicTemplate(text) for text in other_topics]
    for one in map(TopicTemplate, topics):
        for two in other_templates:
            topic = one.common_topic(two)
            if topic is not None and (seen := one.match(topic)) == two.match(topic) and seen is not None and seen[0]:
                return one.text, two.text, topic
    return None


def _share_a_channel(one: Profile, two: Profile) -> bool:
    return any(map(two.find, one.channel)) or any(map(one.find, two.channel))
