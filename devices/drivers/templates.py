"""Topic templates: which levels of an MQTT topic name the device and the channel.

    plant/{device}/{channel}        subscribes to  plant/+/+
    {device}/telemetry              subscribes to  +/telemetry       the codec names the channels
    lab/+/co2/{channel}             `+` is a level that means nothing here
    lab/{device}/#                  `#`, at the end, is any number of them

A placeholder or a wildcard fills its whole level, as in MQTT itself. A part that the template does not
name is "": the device is then the source's own name, the channel what the codec calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle, islice
from string import ascii_lowercase
from typing import Final

PLACEHOLDERS: Final = ("{device}", "{channel}")
TOPIC_MAX_BYTES: Final = 65_535
"""What MQTT's two length bytes can say."""


class TopicTemplate:
    """One template; ValueError says what is wrong with its text."""

    __slots__ = ("_levels", "_pattern", "filter", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        levels = text.split("/")
        if not text or len(text.encode()) > TOPIC_MAX_BYTES or "\x00" in text:
            raise ValueError(f"{text[:40]!r} is no topic: it has 1 to {TOPIC_MAX_BYTES} bytes and no NUL")
        for index, level in enumerate(levels):
            if level == "#" and index != len(levels) - 1:
                raise ValueError(f"`#` must be the last level of {text!r}")
            if level not in ("+", "#", *PLACEHOLDERS) and any(mark in level for mark in "+#{}"):
                raise ValueError(
                    f"{level!r} in {text!r}: a level is plain text, or one of `+`, `#`, {', '.join(PLACEHOLDERS)}"
                )
        for placeholder in PLACEHOLDERS:
            if levels.count(placeholder) > 1:
                raise ValueError(f"{placeholder} stands more than once in {text!r}")
        self.filter = "/".join("+" if level in PLACEHOLDERS else level for level in levels)
        """What to subscribe to."""
        self._levels = self.filter.split("/")
        self._pattern = re.compile(_pattern(levels), re.DOTALL)

    def match(self, topic: str) -> tuple[str, str] | None:
        """(device, channel) that the topic names, "" where it names none; None if it does not match."""
        found = self._pattern.fullmatch(topic)
        if found is None:
            return None
        names = found.groupdict("")
        return names.get("device", ""), names.get("channel", "")

    def common_topic(self, other: TopicTemplate) -> str | None:
        """A topic that the filters of both match, its free levels named by letters; None if there is none.

        Source: MQTT 5.0 (OASIS), section 4.7: `#` matches its parent too, and a wildcard in front no topic with `$`.
        """
        ours, theirs = self._levels, other._levels
        if {ours[0][:1], theirs[0][:1]} in ({"$", "+"}, {"$", "#"}):
            return None
        topic: list[str] = []
        for index, (letter, one, two) in enumerate(zip(_letters(), ours, theirs, strict=False)):
            if "#" in (one, two):
                rest = zip(theirs[index:] if one == "#" else ours[index:], _letters(index), strict=False)
                return "/".join(topic + [_filled(level, name) for level, name in rest])
            if one != two and "+" not in (one, two):
                return None
            topic.append(_filled(two if one == "+" else one, letter))
        longer = max(ours, theirs, key=len)
        return "/".join(topic) if longer[len(topic) :] in ([], ["#"]) else None

    def __repr__(self) -> str:
        return f"TopicTemplate({self.text!r})"


def _letters(start: int = 0) -> Iterator[str]:
    return islice(cycle(ascii_lowercase), start, None)


def _filled(level: str, name: str) -> str:
    return name if level in ("+", "#") else level


def _pattern(levels: list[str]) -> str:
    """The regular expression of the levels. An empty level names nothing, so it does not match a placeholder."""
    rest = ""
    if levels[-1] == "#":
        levels = levels[:-1]
        rest = "(?:/.*)?" if levels else ".*"
    parts = []
    for level in levels:
        if level in PLACEHOLDERS:
            parts.append(f"(?P<{level[1:-1]}>[^/]+)")
        else:
            parts.append("[^/]*" if level == "+" else re.escape(level))
    return "/".join(parts) + rest
