"""The promise holds under faults: 12 of them here; `./task chaos N` makes as many as one likes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
LIMIT_S = 400.0
PROGRAM = str(Path(sys.executable).parent / "forebay-sim")


def chaos(spawn, tmp_path, *options: str):
    """The report of a run, and what it said."""
    report = tmp_path / "report.json"
    process = spawn([PROGRAM, "chaos", *options, "--folder", str(tmp_path / "run"), "--report", str(report)])
    code = process.wait(LIMIT_S)
    return code, json.loads(report.read_text()) if report.exists() else {}, process.output()


def test_twelve_faults_lose_nothing_and_double_nothing(spawn, tmp_path):
    code, account, said = chaos(spawn, tmp_path, "12", "--seed", "12")
    assert code == 0, said
    assert account["faults"] == sum(account["kinds"].values()) == 12
    assert (account["lost"], account["doubled"], account["altered"], account["waiting"]) == (0, 0, 0, 0), said
    assert account["ledger_balances"], said
    assert account["settled"], said
    assert account["ended_by_themselves"] == [], said
    assert account["dropped"] == {}, said
    assert account["acknowledged"] > 1000, said
    assert account["late"] > 0, said
    assert account["rejected"]["duplicate"] > 0, said
    assert account["alarms"] > 0, said


@pytest.mark.parametrize("options", [["3", "--only", "earthquake"], ["3", "--influxdb", "3.0"]])
def test_what_cannot_be_had_is_refused_with_a_sentence(spawn, tmp_path, options):
    code, account, said = chaos(spawn, tmp_path, *options)
    assert code == 2
    assert account == {}
    assert "forebay-sim: " in said
