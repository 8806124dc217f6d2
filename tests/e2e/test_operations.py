"""docs/operations.md against running programs: every metric and every field of `status` is in it, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from devices.model import REJECT_REASONS
from simulators.parts import fetch, program

pytestmark = pytest.mark.real
PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
EDGE = """
gateway = "g1"
[uplink]
broker = "{broker}"
max_per_month = "1 MB"
[store]
path = "edge.db"
max_size = "8 MiB"
endurance = "10 TiB"
[status]
listen = "{listen}"
[source.host]
driver = "host"
"""
CLOUD = '[broker]\nurl = "{broker}"\n[sink]\nurl = "sqlite:points.db"\n[metrics]\nlisten = "{listen}"\n'
READY_S = 30.0
FREE_KEYS = {"sources": "NAME", "ledger.rejected": "", "ledger.dropped": ""}
"""Tables of `status` whose keys are names, and what the page writes for one; "": the table is told as a whole."""


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def documented_metrics(title: str) -> dict[str, tuple[str, set[str]]]:
    """Name as it is exposed -> type, labels."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*?)\| .+ \|$", section(title), re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def exposed_metrics(page: str) -> dict[str, str]:
    """Name as it is exposed -> type."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels if label != "le"}


def check_metrics(title: str, page: str) -> None:
    documented = documented_metrics(title)
    assert {name: kind for name, (kind, _) in documented.items()} == exposed_metrics(page)
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert labels_of(family) <= documented[name][1], name


def fields(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        path = f"{above}{FREE_KEYS.get(above.rstrip('.'), key)}"
        if isinstance(value, dict) and FREE_KEYS.get(path) != "":
            yield from fields(value, f"{path}.")
        else:
            yield path


def test_every_metric_and_every_field_of_a_running_gateway_is_in_the_page(
    mosquitto: Callable[..., Any], spawn: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path
) -> None:
    listen, config = f"127.0.0.1:{free_port()}", tmp_path / "edge.toml"
    config.write_text(EDGE.format(broker=mosquitto().url, listen=listen))
    edge = spawn([program("forebay-edge"), "run", str(config)])
    edge.wait_until(lambda: fetch(f"http://{listen}/readyz") is not None, READY_S, "ready")
    check_metrics("Metrics of the gateway", (fetch(f"http://{listen}/metrics") or b"").decode())
    named = set(re.findall(r"`([a-zA-Z_.]+)`", re.sub(r"\|[^|]*\|$", "", section("What `status` says"), flags=re.M)))
    assert named == set(fields(json.loads(fetch(f"http://{listen}/status") or b"{}")))


def test_every_metric_of_a_running_ingester_is_in_the_page(
    mosquitto: Callable[..., Any], spawn: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path
) -> None:
    listen, config = f"127.0.0.1:{free_port()}", tmp_path / "cloud.toml"
    config.write_text(CLOUD.format(broker=mosquitto().url, listen=listen))
    ingester = spawn([program("forebay-cloud"), "run", str(config)])
    ingester.wait_until(lambda: fetch(f"http://{listen}/healthz") is not None, READY_S, "connected")
    check_metrics("Metrics of the ingester", (fetch(f"http://{listen}/metrics") or b"").decode())
    assert (tmp_path / "points.db").is_file()


def test_every_reason_for_which_a_sample_is_rejected_has_its_advice() -> None:
    assert re.findall(r"^\| `(\w+)` \|", section("What to do when"), re.MULTILINE) == list(REJECT_REASONS)
