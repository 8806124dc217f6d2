"""What a running gateway shows of itself, with every optional part in use."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from simulators.parts import fetch, program

pytestmark = pytest.mark.real

CONFIG = """
gateway = "g1"
[uplink]
broker = "{broker}"
max_per_month = "1 MB"
max_rate = "64 KiB/s"
[store]
path = "{folder}/edge.db"
max_size = "8 MiB"
endurance = "10 TiB"
[clock]
trust_after = "2025-01-01"
[status]
listen = "{listen}"
[source.host]
driver = "host"
"""
READY_S = 30.0


def test_status_and_metrics_can_be_read_whatever_is_configured_and_whatever_became_of_the_file(
    mosquitto: Callable[..., Any], spawn: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path
) -> None:
    listen, config = f"127.0.0.1:{free_port()}", tmp_path / "edge.toml"
    config.write_text(CONFIG.format(broker=mosquitto().url, folder=tmp_path, listen=listen))
    edge = spawn([program("forebay-edge"), "run", str(config)])
    edge.wait_until(lambda: fetch(f"http://{listen}/readyz") is not None, READY_S, "ready")

    status = json.loads(fetch(f"http://{listen}/status") or b"{}")
    assert status["month"]["limit_bytes"] == 1_000_000
    assert status["disk"]["years_left"] is None or status["disk"]["years_left"] > 0
    page = (fetch(f"http://{listen}/metrics") or b"").decode()
    metrics = {family.name: family for family in text_string_to_metric_families(page)}
    assert metrics["forebay_month_limit_bytes"].samples[0].value == 1_000_000
    assert metrics["forebay_disk_written_bytes"].samples[0].value > 0

    config.write_text(f'gatway = "g1"\n[status]\nlisten = "{listen}"\n')
    asked = subprocess.run([program("forebay-edge"), "status", str(config)], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert "limit_bytes  976.6 KiB" in asked.stdout
