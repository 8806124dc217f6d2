"""Series that a configuration expects by name: they are watched for silence before they ever spoke.

A series begins with its first sample, so a sensor that is dead at the start would never be missed. Where a source is
one device, and its profile names a channel that has `expect_every`, the series is known from the start. It goes through
the journal like any other, and `silent` counts from the first tick that knew it (edge/alarms.py).

Templates that name devices, and patterns of channels, name no series: who has not spoken yet is not known there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from devices.model import SeriesSpec
from devices.profiles import is_pattern, load
from edge.config import SourceConfig
from edge.registry import Registry


def expect(registry: Registry, sources: Iterable[SourceConfig]) -> None:
    """Register what these sources expect. What was expected before, and never spoke, is watched no longer: a name that
    was put right must not leave an alarm for ever."""
    wanted = [spec for source in sources for spec in _expected(source)]
    keys = {spec.key for spec in wanted}
    for index, spec in registry.unheard():
        if spec.expect_every_ns and spec.key not in keys:
            registry.change(index, msgspec.structs.replace(spec, expect_every_ns=0))
    for spec in wanted:
        registry.resolve(spec)


def _expected(source: SourceConfig) -> Iterator[SeriesSpec]:
    if not _is_one_device(source):
        return
    for name, channel in source.profile.channel.items():
        if channel.expect_every and not is_pattern(name) and (spec := source.profile.series(source.device, name)):
            yield spec


def _is_one_device(source: SourceConfig) -> bool:
    """Whether all that it brings is of the device that is called like it."""
    if not hasattr(load("drivers", source.driver), "origin"):
        return True
    templates: list[str] | None = getattr(source.options, "topics", None)
    return templates is not None and not any("{device}" in template for template in templates)
