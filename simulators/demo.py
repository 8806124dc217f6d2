"""START HERE for `./task demo`: every part as a process of its own, an outage, an orderly end, an account.

    simulators ─▶ sensor broker ─▶ edge ─▶ uplink broker ─▶ ingester ─▶ sink
                        serial ──────┘           ╳ killed, empty, back after 10 s

The end, in order: the simulators stop and hear of their last messages; what the edge still holds reaches the
sink; the account is read; edge, ingester, sink and brokers end by pid.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from simulators.faults import read_truth
from simulators.live import Display, Vitals
from simulators.parts import Service, SinkPart, edge_service, ingester_service, simulators_process, sink_part
from simulators.processes import Process, ProcessError
from simulators.records import RecordReader
from simulators.scenario import Scenario, load_scenario
from simulators.score import AlarmScore, ProcessScore, Report, Seen, is_settled, score
from simulators.servers import Broker
from simulators.stored import SinkUnreadable, StoredSink

TICK_S = 0.5
ALARM_POLL_S = 0.025
READY_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 45.0
"""After the last sample: a window of 10 s, its lateness and idle close, a ledger, and room for a slow machine."""
SETTLE_POLL_S = 0.1
SIMULATORS_END_TIMEOUT_S = 20.0
OUTAGE_S = 10.0
OUTAGE_AT_S = 16.0


class Outage:
    """Cuts the uplink once, by killing its broker, and brings an empty one back."""

    def __init__(self, uplink: Broker, seconds: float | None, say: Callable[[str], None]) -> None:
        self._uplink = uplink
        self._say = say
        share = math.inf if seconds is None else 0.4 * seconds
        self._at_s, self._length_s = min(OUTAGE_AT_S, share), min(OUTAGE_S, share)
        self._begun_ns = self._over_ns = 0
        self._restored = False

    @property
    def cut(self) -> tuple[int, int] | None:
        """UTC of the broker's end, and of when edge and ingester both had the new one (until then: now)."""
        return (self._begun_ns, self._over_ns or time.time_ns()) if self._begun_ns else None

    def step(self, elapsed_s: float, linked: bool) -> str:
        """To be called often; gives what there is to say about it. `linked`: edge and ingester are connected."""
        if not self._begun_ns:
            if elapsed_s < self._at_s:
                return f"outage in {self._at_s - elapsed_s:.0f} s"
            self._begun_ns = time.time_ns()
            self._uplink.kill()
            self._say(f"{elapsed_s:4.0f} s  the uplink's broker is killed, and all that it holds with it")
        elif not self._restored and elapsed_s >= self._at_s + self._length_s:
            self.restore(elapsed_s)
        elif self._restored and not self._over_ns and linked:
            self._over_ns = time.time_ns()
            self._say(f"{elapsed_s:4.0f} s  edge and ingester are connected again")
        return "the uplink is cut" if not self._restored else "outage over" if self._over_ns else "broker back"

    def restore(self, elapsed_s: float) -> None:
        """Bring the broker back, if it is away."""
        if self._begun_ns and not self._restored:
            self._uplink.start()
            self._restored = True
            self._say(f"{elapsed_s:4.0f} s  the uplink's broker is back, and empty")


@dataclass(slots=True)
class Demo:
    """One run. `run` does it all."""

    folder: Path
    choice: str
    """`sqlite`, `influxdb1`, `influxdb2` or a URL."""
    seed: int
    seconds: float | None
    """None: until `stop` is set."""
    display: Display
    stop: threading.Event
    scenario_name: str = "demo"
    first_point_s: float | None = None
    """From the first sample to the first point in the sink."""
    _ready_s: dict[str, float] = field(default_factory=dict)
    _cpu_at_start_s: dict[str, float] = field(default_factory=dict)
    _rss_bytes: dict[str, int] = field(default_factory=dict)

    def run(self) -> Report:
        """Raises ForebayError where a part is missing or ends by itself."""
        gateway = f"demo-{time.time_ns() // 1_000_000:x}"
        scenario = load_scenario(self.scenario_name)
        with contextlib.ExitStack() as parts:
            sensors, uplink, sink = self._servers(parts, gateway)
            return self._with_services(parts, gateway, scenario, sensors, uplink, sink)

    def _servers(self, parts: contextlib.ExitStack, gateway: str) -> tuple[Broker, Broker, SinkPart]:
        sensors, uplink = Broker(self.folder / "sensor-broker"), Broker(self.folder / "uplink-broker")
        for broker in (sensors, uplink):
            parts.callback(broker.stop)
            broker.start()
        sink = sink_part(self.choice, self.folder, gateway)
        if sink.server is not None:
            parts.callback(sink.server.stop)
        return sensors, uplink, sink

    def _with_services(
        self,
        parts: contextlib.ExitStack,
        gateway: str,
        scenario: Scenario,
        sensors: Broker,
        uplink: Broker,
        sink: SinkPart,
    ) -> Report:
        ingester = ingester_service(self.folder, uplink, sink)
        edge = edge_service(self.folder, gateway, scenario, sensors, uplink)
        simulators = simulators_process(self.folder, self.scenario_name, self.seed, sensors, edge)
        services = {"edge": edge, "ingester": ingester}
        for process in (ingester.process, edge.process, simulators):
            parts.callback(process.stop)
        simulators.start()
        record = self._record(simulators)  # the serial devices' ports are there now
        self._start(services)
        self.display.say(f"run folder {self.folder}; gateway {gateway}; sink {sink.name}; edge {edge.address}/status")
        with AlarmWatch(sink.stored) as watch:
            started_s = time.monotonic()
            outage = Outage(uplink, self.seconds, self.display.say)
            self._work(services, simulators, outage, sink.stored, watch)
            simulators.stop(SIMULATORS_END_TIMEOUT_S)
            seconds = time.monotonic() - started_s
            outage.restore(seconds)
            self._settle(services, record, sink.stored, outage, watch, started_s)
        report = score(
            record.by_series(),
            read_truth(self.folder / "record" / "truth.jsonl"),
            sink.stored,
            seen=watch.seen,
            cut=outage.cut,
            uplink_bytes=Vitals(edge, ingester).uplink_bytes,
        )
        report.processes = self._process_scores(services, report.produced)
        report.sink, report.seconds = sink.name, round(seconds, 1)
        return report

    def _start(self, services: dict[str, Service]) -> None:
        """Start one after the other, so that none is slowed down by another, and time how long each takes."""
        for name, service in reversed(services.items()):
            started_s = time.monotonic()
            service.process.start()
            service.process.wait_until(service.is_ready, READY_TIMEOUT_S, "ready")
            self._ready_s[name] = round(time.monotonic() - started_s, 3)
            self._cpu_at_start_s[name] = _cpu_s(service.process)

    def _record(self, simulators: Process) -> RecordReader:
        """The simulators' record, once they have begun it."""
        record = RecordReader(self.folder / "record")
        simulators.wait_until(record.is_ready, READY_TIMEOUT_S, "ready")
        return record

    def _work(
        self,
        services: dict[str, Service],
        simulators: Process,
        outage: Outage,
        stored: StoredSink,
        watch: AlarmWatch,
    ) -> None:
        """Until the time is over: watch, and cut the uplink once."""
        started_s = time.monotonic()
        while not self.stop.is_set():
            elapsed_s = time.monotonic() - started_s
            if self.seconds is not None and elapsed_s >= self.seconds:
                return
            for name, process in [*((n, s.process) for n, s in services.items()), ("simulators", simulators)]:
                if not process.running:
                    raise ProcessError(
                        f"the {name} ended by itself with {process.returncode}:\n{process.output()[-2000:]}"
                    )
            vitals = Vitals(services["edge"], services["ingester"])
            note = outage.step(elapsed_s, vitals.linked)
            with contextlib.suppress(SinkUnreadable):  # it is asked again at once
                if self.first_point_s is None and stored.holds_samples():
                    self.first_point_s = round(elapsed_s, 2)
            self._measure(services)
            self.display.show(elapsed_s, vitals, len(watch.seen), note)
            self.stop.wait(TICK_S)

    def _settle(
        self,
        services: dict[str, Service],
        record: RecordReader,
        stored: StoredSink,
        outage: Outage,
        watch: AlarmWatch,
        started_s: float,
    ) -> None:
        """Wait until the sink holds all that was sent and the ledger all that was rejected, and until the edge has
        then been seen without a frame (its alarms have a lane of their own), or time is up.
        """
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        elapsed_s = time.monotonic() - started_s
        self.display.say(f"{elapsed_s:4.0f} s  the simulators have stopped; waiting until everything is in the sink")
        self.display.say("        (what no longer sends is reported as silent: alarms that open now are meant to)")
        records = record.by_series()
        settled = False
        while time.monotonic() < deadline_s:
            vitals = Vitals(services["edge"], services["ingester"])
            elapsed_s = time.monotonic() - started_s
            note = outage.step(elapsed_s, vitals.linked)
            self.display.show(elapsed_s, vitals, len(watch.seen), f"{note}; waiting for what is on its way")
            with contextlib.suppress(SinkUnreadable):
                settled = settled or is_settled(records, stored)
            if settled and vitals.of("store", "outbox_frames") == 0:
                return
            time.sleep(SETTLE_POLL_S)

    def _measure(self, services: dict[str, Service]) -> None:
        for name, service in services.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                rss_bytes = psutil.Process(service.process.pid).memory_info().rss
                self._rss_bytes[name] = max(rss_bytes, self._rss_bytes.get(name, 0))

    def _process_scores(self, services: dict[str, Service], samples: int) -> dict[str, ProcessScore]:
        """CPU from ready to now over the simulators' samples; the largest RSS that was seen."""
        self._measure(services)
        return {
            name: ProcessScore(
                cpu_us_per_sample=round(
                    (_cpu_s(service.process) - self._cpu_at_start_s[name]) * 1e6 / max(samples, 1), 1
                ),
                rss_bytes=self._rss_bytes[name],
                ready_s=self._ready_s[name],
            )
            for name, service in services.items()
        }


def _cpu_s(process: Process) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


class AlarmWatch:
    """Asks the sink for alarms every ALARM_POLL_S in a thread of its own, and notes when it first saw each."""

    def __init__(self, stored: StoredSink) -> None:
        self._stored = stored
        self._known: set[tuple[str, str]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alarm-watch", daemon=True)
        self.seen: list[Seen] = []

    def __enter__(self) -> AlarmWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(ALARM_POLL_S):
            with contextlib.suppress(SinkUnreadable):  # it is asked again at once; what is missing at the end is missed
                for alarm in self._stored.alarms():
                    if (alarm.id, alarm.state) not in self._known:
                        self._known.add((alarm.id, alarm.state))
                        self.seen.append(Seen(alarm, time.time_ns()))


def closing_report(report: Report, first_point_s: float | None) -> Iterator[str]:
    """The report in sentences, for people."""
    alarms, latency = report.alarms, report.alarms.latency_ms
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(report.rejected.items())) or "none"
    dropped = ", ".join(f"{count} {policy}" for policy, count in sorted(report.dropped.items())) or "none"
    yield f"ran {report.seconds:.0f} s into {report.sink}; the first point was there after {_shown(first_point_s)} s"
    yield (
        f"samples   {report.produced} sent: {report.stored} stored, {report.waiting} waiting, "
        f"rejected {rejected} (of {report.spoiled} sent broken on purpose), dropped {dropped}"
    )
    yield (
        f"account   {report.lost} lost, {report.doubled} doubled, {report.altered} altered, "
        "by the simulators' own record of what they sent"
    )
    yield (
        f"alarms    {alarms.expected} faults had to raise one: {alarms.raised} in time, {alarms.missed} missed; "
        f"of {alarms.opened} that opened {alarms.false_} false"
    )
    yield (
        f"          from sample to sink p50 {_shown(latency.p50)} ms, p99 {_shown(latency.p99)} ms; "
        f"{alarms.delayed} waited for the end of the outage"
    )
    yield from _open_at_the_end(alarms)
    yield (
        f"bytes     {report.bytes.json_in} of JSON in, {report.bytes.uplink} on the uplink, "
        f"{_shown(report.bytes.ratio)} times fewer "
        f"(1 Hz and faster {_shown(report.bytes.ratio_fast)}, slower {_shown(report.bytes.ratio_slow)})"
    )
    for name, process in report.processes.items():
        yield (
            f"{name:9} ready in {process.ready_s:.2f} s, {process.cpu_us_per_sample} us of CPU a sample, "
            f"RSS {process.rss_bytes / 2**20:.0f} MiB"
        )


def _open_at_the_end(alarms: AlarmScore) -> Iterator[str]:
    """Why there still are alarms when all is over."""
    said = []
    if alarms.still_open:
        said.append(f"{alarms.still_open} of them, for faults of the last seconds")
    if alarms.silent:
        said.append(f"{alarms.silent} more say that a device is silent, since the simulators have stopped")
    if said:
        yield f"          open at the end: {'; '.join(said)}"


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:g}"
