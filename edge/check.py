"""`forebay-edge check`: look at everything that the configuration names, and change nothing.

Each source is opened as a probe and listened to for a few seconds; what it brings goes through the daemon's
own intake and operators, in memory, so what is shown is what would be sent. The uplink's broker is asked,
under a name of its own that leaves no trace, how large a packet it takes.

A serial port is held by one program at a time: where the daemon runs, `forebay-edge watch` shows what comes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from devices.errors import ConfigError, ForebayError
from devices.model import REJECT_REASONS, SECOND_NS, Floats, Int64s
from devices.profiles import load
from devices.wire.session import Session, SessionOptions
from devices.wire.topics import topic
from edge.config import EdgeConfig, SourceConfig
from edge.intake import Drained, Intake, IntakeLimits, Source
from edge.operators import Operators
from edge.registry import Registry
from edge.seal import Sealer

SAMPLES_SHOWN = 8
SERIES_SHOWN = 20
DRAIN_SAMPLES = 4096
LATER_NS = 86_400 * SECOND_NS
"""Added to the clock, so that every window closes."""
UNLIMITED_BYTES = 268_435_455
"""The largest that MQTT can say."""
PACKET_OVERHEAD_BYTES = 1024
"""Topic, properties and header of a frame's MQTT packet, rounded up."""


@dataclass(slots=True)
class Report:
    """Lines to print, and how many of them are problems."""

    lines: list[str] = field(default_factory=list)
    problems: int = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def problem(self, line: str) -> None:
        """Something that must be put right."""
        self.problems += 1
        self.lines.append(f"  PROBLEM: {line}")

    def note(self, line: str) -> None:
        """Something to know."""
        self.lines.append(f"  note: {line}")

    def add(self, other: Report) -> None:
        self.lines += other.lines
        self.problems += other.problems


async def check(config: EdgeConfig, listen_s: float, now_ns: Callable[[], int] = time.time_ns) -> Report:
    """Look at all sources and at the uplink at once, for at most `listen_s` seconds."""
    report = Report()
    report.say(f"gateway {config.gateway}: configuration and profiles are in order")
    operators = Operators(_no_history)
    operators.tick(now_ns())  # the start of everybody's silence, after which windows close
    registry = Registry(operators, config.limits.series)
    probes = [_Probe(config, name, source, operators, registry, now_ns) for name, source in config.source.items()]
    *found, broker = await asyncio.gather(*(p.listen(listen_s) for p in probes), _ask_broker(config, listen_s))
    for part in found:
        report.add(part)
    report.add(_what_would_be_sent(config, operators, now_ns()))
    report.add(broker)
    report.say("all is well" if not report.problems else f"problems: {report.problems}")
    return report


class _Probe:
    """One source, listened to."""

    def __init__(
        self,
        config: EdgeConfig,
        name: str,
        source: SourceConfig,
        operators: Operators,
        registry: Registry,
        now_ns: Callable[[], int],
    ) -> None:
        self._name = name
        self._config = source
        self._operators = operators
        self._now_ns = now_ns
        self._count = 0
        self._samples: list[str] = []
        self._rejected: Counter[str] = Counter()
        limits = IntakeLimits(config.limits.intake_samples, config.limits.intake_bytes, config.limits.message_bytes)
        # An intake for each source, so that it is known which one brought what.
        self._intake = Intake(limits, now_ns, registry.resolve, gateway=config.gateway)
        codec = load("codecs", source.profile.codec.name)(source.profile.codec.options)
        driver = load("drivers", source.driver)
        self._source: Source = self._intake.add(name, driver, source.options, codec, source.profile, probe=True)

    async def listen(self, listen_s: float) -> Report:
        """Until enough samples came, or the time is over."""
        intake = self._intake
        running = asyncio.ensure_future(intake.run())
        try:
            async with asyncio.timeout(listen_s):
                while self._count < SAMPLES_SHOWN:
                    await intake.ready.wait()
                    intake.ready.clear()
                    self._take(intake.drain(DRAIN_SAMPLES))
        except TimeoutError:
            pass
        finally:
            state, error = self._source.status.state, self._source.status.error
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return self._report(state, error or self._source.last_error, listen_s)

    def _take(self, drained: Drained) -> None:
        for (_, reason), count in drained.rejects.items():
            self._rejected[reason] += count
        batch = drained.batch
        if not len(batch):
            return
        verdict = self._operators.admission.admit(batch, drained.arrived_ns, self._now_ns())
        self._operators.samples(batch, drained.arrived_ns, verdict)
        self._rejected.update(REJECT_REASONS[code - 1] for code in verdict.tolist() if 0 < code <= len(REJECT_REASONS))
        for index, time_ns, value in zip(batch.series.tolist(), batch.time_ns, batch.value, strict=True):
            if len(self._samples) < SAMPLES_SHOWN:
                spec = self._operators.specs[index]
                unit = f" {spec.unit}" if spec.unit not in ("", "1") else ""
                self._samples.append(f"  {spec.device}  {spec.channel} = {value:.10g}{unit}   at {_utc(int(time_ns))}")
        self._count += len(batch)

    def _report(self, state: str, error: str, listen_s: float) -> Report:
        profile = self._config.profile
        report = Report()
        report.say(f"source {self._name}: driver {self._config.driver}, profile {profile.id}, {state}")
        report.lines += self._samples
        if self._rejected:
            report.note("rejected: " + ", ".join(f"{reason} {n}" for reason, n in sorted(self._rejected.items())))
        if error:
            report.problem(error)
        elif not self._count and state == "open":
            report.problem(
                f"nothing came within {listen_s:g} s though it is open (no answer): is the device switched on, and "
                "are its address, topic or cable the right ones? A slow device needs --seconds"
            )
        elif not self._count:
            report.problem(f"it was not open within {listen_s:g} s")
        if getattr(self._config.options, "qos", 0):
            report.note(
                "what this broker itself loses never reaches Forebay: let it persist its queue, without a bound "
                "(mosquitto: persistence true, autosave_interval, max_queued_messages 0)"
            )
        return report


def _what_would_be_sent(config: EdgeConfig, operators: Operators, now_ns: int) -> Report:
    """The series that were seen, and the frames of one window of them."""
    report = Report()
    specs = [spec for spec in operators.specs if spec.channel]
    report.say(f"would send: {len(specs)} series to {topic(config.gateway, 'data')} at {config.uplink.broker}")
    for spec in specs[:SERIES_SHOWN]:
        how = f"window {spec.window_ns / SECOND_NS:g} s" if spec.report == "summary" else spec.report
        filters = ", ".join(spec.filters) or "none"
        report.say(
            f"  {spec.device}/{spec.channel}: {spec.quantity} [{spec.unit or '1'}], {spec.kind.name.lower()}, "
            f"{how}, filters: {filters}"
        )
    if len(specs) > SERIES_SHOWN:
        report.say(f"  and {len(specs) - SERIES_SHOWN} more")
    operators.tick(now_ns + LATER_NS)
    frames = [frame for _, frame in Sealer(config.gateway, 1, 1, operators.specs).closed(operators.take(), now_ns)]
    if frames:
        sizes = ", ".join(str(len(frame)) for frame in frames)
        report.say(f"  the samples above as frames: {sizes} bytes")
    return report


async def _ask_broker(config: EdgeConfig, listen_s: float) -> Report:
    """Connect to the uplink's broker and leave again."""
    report, uplink = Report(), config.uplink
    report.say(f"uplink {uplink.broker}")
    answered = asyncio.Event()

    def on_connect(session_present: bool) -> None:
        del session_present
        answered.set()

    def on_disconnect(error: ForebayError) -> None:
        del error
        answered.set()

    try:
        session = Session(
            SessionOptions(
                broker=uplink.broker,
                client_id=f"forebay-check-{secrets.token_hex(6)}",
                username=config.uplink_user,
                password_file=uplink.password_file,
                password_env=uplink.password_env,
                ca_file=uplink.ca_file,
                cert_file=uplink.cert_file,
                key_file=uplink.key_file,
                clean_start=True,
                session_expiry_s=0,
            ),
            on_messages=lambda inbound: None,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
            on_published=lambda mid, reason: None,
        )
    except ConfigError as error:
        report.problem(str(error))
        return report
    running = asyncio.ensure_future(session.run())
    try:
        async with asyncio.timeout(listen_s):
            await answered.wait()
    except TimeoutError:
        pass
    finally:
        connected, why = session.connected, session.error
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if not connected:
        report.problem(why or f"no answer within {listen_s:g} s")
        return report
    takes_bytes = session.broker_max_packet_bytes
    size = f"of {takes_bytes} bytes" if takes_bytes < UNLIMITED_BYTES else "of any size"
    report.say(f"  connected; the broker takes packets {size}")
    if uplink.frame_bytes + PACKET_OVERHEAD_BYTES > takes_bytes:
        report.problem(
            f"frames may have {int(uplink.frame_bytes)} bytes, but the broker takes packets of {takes_bytes}: lower "
            "[uplink] frame_bytes, or raise the broker's limit (mosquitto: max_packet_size)"
        )
    report.note("keep frame_bytes below the ingester's limit too: a broker drops what its subscriber cannot take")
    return report


def _no_history(series: int, lo_ns: int, hi_ns: int) -> tuple[Int64s, Floats]:
    return np.empty(0, np.int64), np.empty(0)


def _utc(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")
