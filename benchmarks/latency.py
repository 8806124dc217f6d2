"""From a sample to its alarm in InfluxDB, through the real processes, while 1,000 other samples a second pass.

    ./task bench latency [--alarms N] [--rate PER_S] [--json FILE]

A probe sends a value out of its range and asks InfluxDB until the alarm's point is there. The clock runs from before
the sample is handed to the socket to after the answer that has the point, so it includes the probe's own asking
(a query takes about a millisecond). Then the probe sends a normal value, and waits for the alarm to close.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import load
from benchmarks.harness import parser, report, wait_for
from benchmarks.path import RunningPath, running_path

PROBES = 10
NORMAL, ABNORMAL = b'{"value": 50}', b'{"value": 150}'
ALARM_TIMEOUT_S = 30.0
ASK_EVERY_S = 0.002
PAUSE_S = (0.02, 0.2)
"""Between two probes, drawn anew each time so that they fall at any moment of the edge's commits."""
WARM_UP_ALARMS = 20


class Probe:
    """One device with one channel, whose alarm is opened and closed."""

    def __init__(self, path: RunningPath, device: str) -> None:
        self._path = path
        self._device = device
        self._topic = f"plant/{device}/pressure"
        self._link = load.connect(path.sensors.host, path.sensors.port, client_id=device)

    def send(self, payload: bytes) -> None:
        self._link.sendall(load.publish_packet(self._topic, payload, 1))
        self._link.recv(load.PUBACK_BYTES)

    def provoke(self, payload: bytes, state: str) -> float:
        """Send a value and wait for the alarm's point with this state; seconds."""
        q = f"SELECT value FROM alarm WHERE device='{self._device}' AND state='{state}' AND time >= {time.time_ns()}"
        began_s = time.perf_counter()
        self.send(payload)
        wait_for(lambda: bool(self._path.influxdb.query(q)), ALARM_TIMEOUT_S, f"alarm {state}", ASK_EVERY_S)
        return time.perf_counter() - began_s

    def close(self) -> None:
        self._link.close()


def measure(path: RunningPath, alarms: int) -> list[float]:
    """Seconds to each alarm."""
    probes = [Probe(path, f"probe-{number}") for number in range(PROBES)]
    for probe in probes:
        probe.send(NORMAL)
    latencies = []
    for number in range(alarms):
        time.sleep(random.uniform(*PAUSE_S))
        probe = probes[number % PROBES]
        latencies.append(probe.provoke(ABNORMAL, "open"))
        probe.provoke(NORMAL, "closed")
    for probe in probes:
        probe.close()
    return latencies


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--alarms", type=int, default=400)
    options.add_argument("--rate", type=int, default=1000, help="other samples/s")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_path(Path(folder)) as path:
        # More than enough to last; it is ended when the last alarm has been seen.
        load_s = (arguments.alarms + WARM_UP_ALARMS) * (PAUSE_S[1] + 0.5)
        loader = load.start(path.sensors.port, int(load_s * arguments.rate), "--rate", str(arguments.rate))
        load.go(loader)
        try:
            measure(path, WARM_UP_ALARMS)
            latencies_ms = sorted(latency_s * 1000 for latency_s in measure(path, arguments.alarms))
            if loader.poll() is not None:
                raise SystemExit("the load ended before the last alarm: alarms took more than 0.5 s")
        finally:
            loader.kill()
            loader.communicate()
    percentiles = statistics.quantiles(latencies_ms, n=100, method="inclusive")
    report(
        f"Sample to alarm in InfluxDB 1.8, {arguments.alarms} alarms, beside {arguments.rate} samples/s",
        [["", "ms"], *([f"p{p}", percentiles[p - 1]] for p in (50, 90, 99)), ["most", latencies_ms[-1]]],
        {"alarm_ms_p50": percentiles[49], "alarm_ms_p99": percentiles[98], "alarm_ms_max": latencies_ms[-1]},
        arguments.json,
    )


if __name__ == "__main__":
    main()
