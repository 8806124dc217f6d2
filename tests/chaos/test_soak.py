"""A soak in short: that it ends with an account, and when it says that something grows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from simulators.soak import Growth, Size

LIMIT_S = 250.0
PROGRAM = str(Path(sys.executable).parent / "forebay-sim")


@pytest.mark.real
def test_half_a_minute_of_soak_holds_and_measures_every_process(spawn, tmp_path):
    report = tmp_path / "report.json"
    process = spawn([PROGRAM, "soak", "0.5", "--folder", str(tmp_path / "run"), "--report", str(report)])
    process.wait(LIMIT_S)
    said = process.output()
    assert report.exists(), said
    account = json.loads(report.read_text())
    chaos = account["chaos"]
    assert (chaos["lost"], chaos["doubled"], chaos["altered"], chaos["settled"]) == (0, 0, 0, True), said
    assert set(account["growth"]) == {"edge", "ingester-a", "ingester-b"}
    assert all(growth["late"]["rss_bytes"] > 1 << 20 for growth in account["growth"].values())
    assert 0 < account["store_bytes"] <= account["store_limit_bytes"]


def test_a_process_whose_memory_descriptors_or_threads_grow_is_not_steady():
    early = Size(rss_bytes=60e6, descriptors=20, threads=3)
    assert Growth(early, Size(64e6, 21, 3)).is_steady
    assert not Growth(early, Size(70e6, 20, 3)).is_steady
    assert not Growth(early, Size(60e6, 60, 3)).is_steady
    assert not Growth(early, Size(60e6, 20, 9)).is_steady
