"""`forebay-edge check`: look at everything that the configuration names, and change nothing.

Each source is opened as a probe and listened to for a few seconds; what it brings goes through the daemon's
own intake and operators, in memory, so what is shown is what would be sent. The uplink's broker is asked
under a name of its own, without a trace, how large a packet it takes.

The check opens ports exclusively: stop the daemon first, or use `forebay-edge watch`, where it holds them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from devices.model import REJECT_REASONS, Floats, Int64s, SampleBatch, SeriesSpec
from devices.profiles import load
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import topic
from edge.config import EdgeConfig, UplinkConfig
from edge.identity import ACCEPTED, BEHIND_JOURNAL
from edge.intake import Intake, IntakeLimits, Source
from edge.operators import Operators
from edge.seal import Sealer

LISTEN_S = 5.0
SAMPLES_SHOWN = 8
LATER_NS = 1 << 60
"""Added to the clock so that every window closes: some 36 years."""
OVERHEAD_BYTES = 1024
"""Topic, properties and header of a frame's MQTT packet, rounded up."""


@dataclass(slots=True)
class Seen:
    """What one source brought."""

    samples: list[tuple[str, str, float, str, int]] = field(default_factory=list)
    """(device, channel, value, unit, time in ns) of the first ones"""
    count: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


class Findings:
    """Lines to print, and whether all is well."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def problem(self, line: str) -> None:
        """Something that must be put right."""
        self.problems += 1
        self.lines.append(f"  PROBLEM  {line}")

    def note(self, line: str) -> None:
        """Something to know."""
        self.lines.append(f"  note     {line}")


async def check(config: EdgeConfig, listen_s: float, now_ns: Callable[[], int] = time.time_ns) -> Findings:
    """Look at all sources and at the uplink at once, for at most `listen_s` seconds."""
    findings = Findings()
    findings.say(f"gateway {config.gateway}: configuration and profiles are in order (digest {config.digest})")
    uplink = asyncio.ensure_future(_ask_broker(config.uplink, listen_s))
    operators = Operators(_no_history)
    seen = await _listen(config, operators, listen_s, now_ns, findings)
    for name, report in seen.items():
        findings.lines += report.lines
        findings.problems += report.problems
        del name
    _show_frames(config, operators, now_ns(), findings)
    _show_uplink(config.uplink, await uplink, findings)
    findings.say("all is well" if not findings.problems else f"{findings.problems} problems")
    return findings


# -- sources -----------------------------------------------------------------------------------------


async def _listen(
    config: EdgeConfig, operators: Operators, listen_s: float, now_ns: Callable[[], int], findings: Findings
) -> dict[str, Findings]:
    index: dict[tuple[str, str, str], int] = {}

    def resolve(spec: SeriesSpec) -> int | str:
        if spec.key not in index:
            if len(index) >= config.limits.series:
                return "series_limit"
            index[spec.key] = len(index)
            operators.set_series(index[spec.key], spec)
        return index[spec.key]

    limits = IntakeLimits(config.limits.intake_samples, config.limits.intake_bytes, config.limits.message_bytes)
    seen: dict[str, Seen] = {}
    reports: dict[str, Findings] = {}
    running = []
    for name, source in config.source.items():
        # An intake of its own for each, so that what arrives can be told apart.
        intake = Intake(limits, now_ns, resolve, gateway=config.gateway)
        codec = load("codecs", source.profile.codec.name)(source.profile.codec.options)
        added = intake.add(name, load("drivers", source.driver), source.options, codec, source.profile, probe=True)
        seen[name] = Seen()
        running.append((name, added, asyncio.ensure_future(_hear(intake, added, operators, seen[name], listen_s, now_ns))))
    for name, added, task in running:
        await task
        reports[name] = _report(name, added, config, seen[name], listen_s)
    del findings
    return reports


async def _hear(
    intake: Intake, source: Source, operators: Operators, seen: Seen, listen_s: float, now_ns: Callable[[], int]
) -> None:
    """Until enough came, or the time is over."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + listen_s
    running = asyncio.ensure_future(intake.run())
    try:
        while seen.count < SAMPLES_SHOWN and (left_s := until_s - loop.time()) > 0:
            try:
                await asyncio.wait_for(intake.ready.wait(), left_s)
            except TimeoutError:
                break
            intake.ready.clear()
            drained = intake.drain(intake_max(intake))
            for (_, reason), count in drained.rejects.items():
                seen.rejected[reason] += count
            if len(drained.batch):
                _take(drained.batch, drained.arrived_ns, source, operators, seen, now_ns())
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
