"""The fleet of `benchmarks/fleet.py` in small: what a broker that comes back must not cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fleet import differences, run
from benchmarks.gateways import Plan
from simulators.servers import free_port


def test_what_one_gateway_lacks_another_does_not_make_up_for() -> None:
    assert differences({"a": 10, "b": 10, "c": 10}, {"a": 9, "b": 11, "d": 1}) == (11, 2)


@pytest.mark.real
def test_fifty_gateways_that_return_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    plan = Plan(f"mqtt://127.0.0.1:{free_port()}", series=5, backlog_s=600, max_rate=16 << 10, alarm_every_s=4.0)
    figures = run(tmp_path, 50, plan, processes=1, away_s=2.0)
    assert figures["points"] >= 50 * 5 * 60
    assert figures["alarms_raised"] > 0
    assert (figures["waiting"], figures["lost"], figures["doubled"]) == (0, 0, 0), figures
    assert figures["resends"] < 0.2, figures
    assert figures["sink_busy"] == 0, figures
