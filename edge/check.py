"""`forebay-edge check`: look at everything that the configuration names, and change nothing.

Each source is opened as a probe and listened to for a few seconds; what it brings goes through the daemon's
own intake and operators, in memory, so what is shown is what would be sent. The uplink's broker is asked,
under a name of its own that leaves no trace, how large a packet it takes.

A serial port is held by one program at a time. Where that is the gateway itself, which tells its status, all is well,
and `forebay-edge watch` shows what comes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from devices.errors import ConfigError
from devices.findings import Findings
from devices.model import REJECT_REASONS, SECOND_NS, Floats, Int64s
from devices.profiles import load
from devices.quantities import Size
from devices.tables import key_path
from devices.wire.probe import ask
from devices.wire.topics import topic
from edge.ask import called, must_be_free, running
from edge.config import EdgeConfig, SourceConfig
from edge.intake import Drained, Intake, IntakeLimits, Source
from edge.operators import Operators
from edge.parts import session_options
from edge.registry import Registry
from edge.seal import PACKET_OVERHEAD_BYTES, Sealer

SAMPLES_SHOWN = 8
SERIES_SHOWN = 20
CHANNELS_SHOWN = 5
DRAIN_SAMPLES = 4096
LATER_NS = 86_400 * SECOND_NS
"""Added to the clock, so that every window closes."""


async def check(config: EdgeConfig, path: Path, listen_s: float, now_ns: Callable[[], int] = time.time_ns) -> Findings:
    """Look at all sources and at the uplink at once, for at most `listen_s` seconds. `path`: the configuration's."""
    found = Findings()
    found.say(f"gateway {config.gateway}: configuration and profiles are in order")
    gateway = await asyncio.to_thread(running, config.status)
    found.add(_look_at_status(config, gateway))
    if gateway is not None and gateway["gateway"] != config.gateway:
        gateway = None
    found.add(_look_at_store(Path(config.store.path), config.store.max_size, gateway))
    operators = Operators(_no_history)
    operators.tick(now_ns())  # the start of everybody's silence, after which windows close
    registry = Registry(operators, config.limits.series)
    probes = [_Probe(config, name, source, operators, registry, now_ns) for name, source in config.source.items()]
    asking = asyncio.ensure_future(_ask_broker(config, listen_s))
    await asyncio.gather(*(probe.listen(listen_s) for probe in probes))
    for probe in probes:
        found.add(probe.report(gateway, path, listen_s))
    found.add(_what_would_be_sent(config, operators, now_ns()))
    found.add(await asking)
    found.close()
    return found


def _look_at_status(config: EdgeConfig, gateway: dict[str, Any] | None) -> Findings:
    """Whether `[status] listen` can be had, or who has it."""
    found = Findings()
    if gateway is None or gateway["gateway"] != config.gateway:
        try:
            must_be_free(config.status)
        except ConfigError as error:
            found.problem(str(error))
        return found
    found.say(f"  {called(gateway)} is running")
    if gateway["configuration"]["digest"] != config.digest:
        found.note("it runs with another configuration than is in this file now: SIGHUP lets it read the file again")
    return found


def _look_at_store(file: Path, max_bytes: int, gateway: dict[str, Any] | None) -> Findings:
    """Whether the store can be made, or opened."""
    found = Findings()
    found.say(f"store {file.absolute()}")
    folder = next(folder for folder in file.absolute().parents if folder.exists())
    if gateway is not None:
        found.say("  the running gateway has it open")
    elif file.exists():
        if not file.is_file() or not os.access(file, os.R_OK | os.W_OK):
            found.problem(f"{file} is no file that this user may read and write: check [store] path, and its owner")
    elif not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found.problem(
            f"this user may not write to {folder}: set [store] path to a folder of its own, or change its owner"
        )
    elif (free_bytes := shutil.disk_usage(folder).free) < max_bytes:
        found.problem(
            f"it takes {Size(max_bytes)} at the first start, and {folder} has {Size(free_bytes >> 20 << 20)} free: "
            "make room, or lower [store] max_size"
        )
    else:
        found.say(f"  it will be made at the first start, and take {Size(max_bytes)}")
    return found


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
        self._state = self._error = ""
        self._count = 0
        self._samples: list[str] = []
        self._rejected: Counter[str] = Counter()
        limits = IntakeLimits(config.limits.intake_samples, config.limits.intake_bytes, config.limits.message_bytes)
        # An intake for each source, so that it is known which one brought what.
        self._intake = Intake(limits, now_ns, registry.resolve, gateway=config.gateway)
        codec = load("codecs", source.profile.codec.name)(source.profile.codec.options)
        driver = load("drivers", source.driver)
        self._source: Source = self._intake.add(name, driver, source.options, codec, source.profile, probe=True)

    async def listen(self, listen_s: float) -> None:
        """Until enough samples came, or the time is over."""
        intake = self._intake
        opened = asyncio.ensure_future(intake.run())
        try:
            async with asyncio.timeout(listen_s):
                while self._count < SAMPLES_SHOWN:
                    await intake.ready.wait()
                    intake.ready.clear()
                    self._take(intake.drain(DRAIN_SAMPLES))
        except TimeoutError:
            pass
        finally:
            self._state, self._error = self._source.status.state, self._source.status.error or self._source.last_error
            opened.cancel()
            await asyncio.gather(opened, return_exceptions=True)

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

    def report(self, gateway: dict[str, Any] | None, path: Path, listen_s: float) -> Findings:
        """What came. `gateway`: the status of the one that is running, None where none is."""
        found = Findings()
        running_source = gateway["sources"].get(self._name) if gateway is not None else None
        if self._source.status.held and running_source is not None and running_source["state"] != "failed":
            assert gateway is not None
            found.say(f"source {self._name}: driver {self._config.driver}, held by {called(gateway)}, as it should be")
            found.say(
                f"  {running_source['samples']} samples so far; see what comes: forebay-edge watch {path} {self._name}"
            )
            if running_source["error"]:
                found.problem(running_source["error"])
            return found
        found.say(
            f"source {self._name}: driver {self._config.driver}, profile {self._config.profile.id}, {self._state}"
        )
        found.lines += self._samples
        self._note_rejected(found)
        if self._error:
            found.problem(self._error)
        elif not self._count and self._state == "open":
            found.problem(self._silence(listen_s))
        elif not self._count:
            found.problem(f"it was not open within {listen_s:g} s")
        if getattr(self._config.options, "qos", 0):
            found.note(
                "what this broker itself loses never reaches Forebay: let it persist its queue, without a bound "
                "(mosquitto: persistence true, autosave_interval, max_queued_messages 0)"
            )
        return found

    def _note_rejected(self, found: Findings) -> None:
        if not self._rejected:
            return
        found.note("rejected: " + ", ".join(f"{reason} {n}" for reason, n in sorted(self._rejected.items())))
        unknown = [repr(channel[:60]) for channel in self._source.router.refused("unknown_channel")]
        if unknown:
            more = f" and {len(unknown) - CHANNELS_SHOWN} more" if len(unknown) > CHANNELS_SHOWN else ""
            found.note(
                f"profile {self._config.profile.id} has no channel {', '.join(unknown[:CHANNELS_SHOWN])}{more}: "
                f"to keep one, add it to the profile, or as {key_path('source', self._name, 'channel', 'NAME')}"
            )

    def _silence(self, listen_s: float) -> str:
        """It is open, and no sample came."""
        if self._rejected:
            return f"what came within {listen_s:g} s was all rejected, see above"
        status, advice = self._source.status, getattr(self._source.driver, "when_silent", "")
        if self._source.driver.stream and status.bytes_in:
            return (
                f"{status.bytes_in} bytes came within {listen_s:g} s, but no whole message: compare baud_rate, "
                "data_bits and parity with the device's settings, and how its messages end with what the codec expects"
            )
        return (
            f"nothing came within {listen_s:g} s though it is open: "
            f"{advice or 'is the device switched on, and is this its address?'} (One that is slow needs --seconds.)"
        )


def _what_would_be_sent(config: EdgeConfig, operators: Operators, now_ns: int) -> Findings:
    """The series that were seen, and the frames of one window of them."""
    found = Findings()
    specs = [spec for spec in operators.specs if spec.channel]
    found.say(f"would send: {len(specs)} series to {topic(config.gateway, 'data')} at {config.uplink.broker}")
    for spec in specs[:SERIES_SHOWN]:
        how = f"window {spec.window_ns / SECOND_NS:g} s" if spec.report == "summary" else spec.report
        filters = ", ".join(spec.filters) or "none"
        found.say(
            f"  {spec.device}/{spec.channel}: {spec.quantity} [{spec.unit or '1'}], {spec.kind.name.lower()}, "
            f"{how}, filters: {filters}"
        )
    if len(specs) > SERIES_SHOWN:
        found.say(f"  and {len(specs) - SERIES_SHOWN} more")
    operators.tick(now_ns + LATER_NS)
    frames = [frame for _, frame in Sealer(config.gateway, 1, 1, operators.specs).closed(operators.take(), now_ns)]
    if frames:
        sizes = ", ".join(str(len(frame)) for frame in frames)
        found.say(f"  the samples above as frames: {sizes} bytes")
    return found


async def _ask_broker(config: EdgeConfig, listen_s: float) -> Findings:
    """Connect to the uplink's broker and leave again."""
    found, uplink = Findings(), config.uplink
    found.say(f"uplink {uplink.broker}")
    try:
        asked = await ask(session_options(config), listen_s)
    except ConfigError as error:
        found.problem(str(error))
        return found
    if asked.error:
        found.problem(asked.error)
    if not asked.connected:
        return found
    found.say(f"  connected; the broker takes packets {asked.takes}")
    if uplink.frame_bytes + PACKET_OVERHEAD_BYTES > asked.takes_bytes:
        found.problem(
            f"frames may have {int(uplink.frame_bytes)} bytes, but the broker takes packets of {asked.takes_bytes}: "
            "lower [uplink] frame_bytes, or raise the broker's limit (mosquitto: max_packet_size)"
        )
    found.note("keep frame_bytes below the ingester's limit too: a broker drops what its subscriber cannot take")
    return found


def _no_history(series: int, times_ns: Int64s) -> tuple[Int64s, Floats]:
    return np.empty(0, np.int64), np.empty(0)


def _utc(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")
