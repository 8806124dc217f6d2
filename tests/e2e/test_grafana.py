"""The dashboard and the alert rules, query by query, on real servers that hold what real frames became.

Grafana itself is not here. What it does with the files is in conftest.py: variables and macros are filled in as
it fills them in, and rules are evaluated as it evaluates them.
"""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest

from cloud.lines import encode as to_lines
from devices.model import CHANGE_DTYPE, SECOND_NS, SUMMARY_DTYPE, Alarm, Kind, Lane, SampleBatch
from devices.wire.frame import (
    Account,
    AlarmBody,
    BodyKind,
    ChangeBody,
    Frame,
    FrameLimits,
    Header,
    Heartbeat,
    Inventory,
    InventoryDevice,
    Ledger,
    RawBody,
    SummaryBody,
    WireSeries,
    decode,
    encode,
)

WINDOW_NS = 10 * SECOND_NS
WINDOWS = 30
GATEWAY = "north/plant (1)"
PRESSES = ("press-1", "press [2] = $x", "a/b, c")
"""Names that have to be escaped, in line protocol and in the expressions of a query."""
TEMPERATURE, STROKES, MODE, GUARD = range(4)


def series_of(device: str) -> list[WireSeries]:
    return [
        WireSeries(device, "temperature", "temperature", "Cel", Kind.GAUGE),
        WireSeries(device, "strokes", "strokes", "1", Kind.COUNTER),
        WireSeries(device, "mode", "mode", "", Kind.STATE, {"idle": 0.0, "running": 1.0}),
        WireSeries(device, "guard", "guard", "", Kind.STATE),
    ]


def summaries_of(device: str, first_ns: int, seed: int) -> np.ndarray:
    """Windows of temperature and strokes, and a supplement of one sample in every third window of temperature."""
    random = np.random.default_rng(seed)
    rows = []
    for n in range(WINDOWS):
        start_ns = first_ns + n * WINDOW_NS
        samples = np.round(60 + seed + random.normal(size=10), 2)
        rows.append(summary(TEMPERATURE, start_ns, samples))
        if n % 3 == 0:
            rows.append(summary(TEMPERATURE, start_ns + 1, np.array([90.0])))
        rows.append(summary(STROKES, start_ns, np.arange(10.0) + 10 * n, increase=10.0))
    return np.array(rows, SUMMARY_DTYPE)


def summary(series: int, time_ns: int, samples: np.ndarray, increase: float = np.nan) -> tuple[Any, ...]:
    extremes = samples.min(), samples.max()
    counts = series, time_ns, WINDOW_NS, len(samples)
    return (*counts, samples.mean(), *extremes, samples.std(), samples[0], samples[-1], increase)


def changes_from(first_ns: int) -> np.ndarray:
    times = first_ns + np.arange(WINDOWS) * WINDOW_NS
    return np.array(
        [(series, time_ns + series, n % 2) for series in (MODE, GUARD) for n, time_ns in enumerate(times)], CHANGE_DTYPE
    )


def alarm(state: str, time_ns: int, severity: str = "critical", detector: str = "range", **more: Any) -> Alarm:
    numbers = {"value": 97.5, "low": 0.0, "high": 95.0, "score": 1.2, **more}
    reason = f'it is "97.5" Cel, {state}'
    return Alarm("a-1", TEMPERATURE, detector, state, severity, time_ns, time_ns, reason=reason, **numbers)


class Cloud:
    """Writes bodies of frames as an ingester does: encoded, decoded, made into lines."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._seq = 0

    def send(self, body: BodyKind, device: str = "", gateway: str = "north", at_ns: int = 0) -> None:
        self._seq += 1
        header = Header(gateway, 1, self._seq, Lane.LIVE, at_ns or time.time_ns())
        payload = encode(Frame(header, series_of(device) if device else [], body))
        lines = to_lines(decode(payload, FrameLimits()), at_ns or time.time_ns())
        self._server.write(lines.body.decode())


@pytest.fixture
def cloud(influxdb):
    return Cloud(influxdb)


@pytest.fixture
def now_ns():
    return time.time_ns()


@pytest.fixture
def plant(cloud, now_ns):
    """Everything that a gateway can tell the cloud, in five minutes up to now; gives the summaries of temperature."""
    first_ns = (now_ns // WINDOW_NS - WINDOWS) * WINDOW_NS
    kept = {}
    for seed, device in enumerate(PRESSES):
        rows = kept[device] = summaries_of(device, first_ns, seed)
        cloud.send(SummaryBody(rows), device)
        cloud.send(ChangeBody(changes_from(first_ns)), device)
        cloud.send(AlarmBody([alarm("open", first_ns + 1), alarm("closed", first_ns + SECOND_NS)]), device)
    samples = SampleBatch(np.zeros(3, np.int32), first_ns + np.arange(3), np.arange(3.0), np.zeros(3, np.uint8))
    cloud.send(RawBody(samples), PRESSES[0])
    cloud.send(AlarmBody([alarm("open", now_ns - SECOND_NS)]), PRESSES[0])
    for ago_s in (240, 180, 120, 60, 5):
        at_ns = now_ns - ago_s * SECOND_NS
        beat = Heartbeat(at_ns, "forebay 1", "d1", 10 << 20, 64 << 20, 3, 1200, 1, 3600.0)
        cloud.send(beat)
        accounts = [Account(d, "", 100 - ago_s // 60, 90, 7, 1, {"malformed": 2}, {"overrun": 1}) for d in PRESSES]
        cloud.send(Ledger(at_ns, [*accounts, Account(PRESSES[0], "temperature", 50, 47, 0, 0, {"malformed": 3})]))
    channels = ["temperature", "strokes", "mode", "guard"]
    cloud.send(Inventory("forebay 1", "c1", [InventoryDevice(d, "press@1", channels) for d in PRESSES]), at_ns=now_ns)
    cloud.send(Heartbeat(0, "", ""), at_ns=now_ns - 30 * SECOND_NS)
    return {device: rows[rows["series"] == TEMPERATURE] for device, rows in kept.items()}


@pytest.fixture
def last_hour(view, now_ns):
    """`last_hour(device=["press-1"])`: a view of the last hour, with what is chosen above it."""
    to_ms = now_ns // 1_000_000 + 1000
    return lambda **chosen: view(to_ms - 3_600_000, to_ms, chosen)


# -- files ---------------------------------------------------------------------------------------------------


def test_every_panel_says_what_it_shows_and_in_which_unit(grafana):
    for panel in grafana.panels:
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


def test_panels_have_their_own_ids_titles_and_places(grafana):
    panels = grafana.dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in grafana.panels}) == len(grafana.panels)
    places = [
        (place["x"] + dx, place["y"] + dy)
        for panel in panels
        for place in [panel["gridPos"]]
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24


def test_every_reference_to_the_data_source_is_to_the_one_that_is_provisioned(grafana):
    [source] = grafana.provisioned["datasources/forebay.yaml"]["datasources"]
    assert source["type"] == "influxdb"
    assert source["jsonData"]["version"] == "InfluxQL"
    reference = {"type": source["type"], "uid": source["uid"]}
    holders = [*grafana.panels, *grafana.variables, *grafana.dashboard["annotations"]["list"]]
    holders += [target for panel in grafana.panels for target in panel["targets"]]
    assert all(holder["datasource"] == reference for holder in holders)
    for uid, rule in grafana.rules.items():
        for step in rule["data"]:
            expected = {"type": "__expr__", "uid": "__expr__"} if step["datasourceUid"] == "__expr__" else reference
            assert step["model"]["datasource"] == expected, uid
            assert step["datasourceUid"] == expected["uid"], uid


def test_every_query_is_raw_influxql(grafana):
    targets = [target for panel in grafana.panels for target in panel["targets"]]
    targets += [step["model"] for rule in grafana.rules.values() for step in rule["data"] if "query" in step["model"]]
    for target in targets:
        assert target["rawQuery"] is True
        assert target["resultFormat"] in ("time_series", "table")
        assert target["query"].startswith("SELECT "), target["query"]


def test_tables_select_their_tags_so_that_no_column_depends_on_an_order(grafana):
    """Grafana's streaming parser puts the tags of GROUP BY into a table in an order that is not fixed."""
    for panel in grafana.panels:
        for target in panel["targets"]:
            if target["resultFormat"] == "table":
                outermost = re.sub(r"\(.*\)", "", target["query"])
                assert "GROUP BY" not in outermost, panel["title"]


def test_a_rule_states_all_that_grafana_would_otherwise_guess(grafana):
    groups = grafana.provisioned["alerting/rules.yaml"]["groups"]
    assert all(group["name"] and group["folder"] and group["interval"] for group in groups)
    assert len(grafana.rules) == sum(len(group["rules"]) for group in groups)
    assert len({rule["title"] for rule in grafana.rules.values()}) == len(grafana.rules)
    for uid, rule in grafana.rules.items():
        assert len(uid) <= 40
        assert re.fullmatch(r"\d+[sm]", rule["for"]), uid
        assert rule["noDataState"] in ("OK", "NoData", "Alerting", "KeepLast"), uid
        assert rule["execErrState"] in ("OK", "Error", "Alerting", "KeepLast"), uid
        assert rule["labels"]["severity"] in ("critical", "warning"), uid
        assert rule["annotations"].keys() == {"summary", "description"}, uid
        assert rule["condition"] in [step["refId"] for step in rule["data"]], uid


def test_a_rule_uses_no_variable_and_its_texts_name_only_what_it_has(grafana):
    """Grafana fills in `$NAME` and `${NAME}` from the environment in labels, and only `${NAME}` in annotations."""
    for uid, rule in grafana.rules.items():
        queries = {step["refId"]: step["model"]["query"] for step in rule["data"] if "query" in step["model"]}
        assert all(re.findall(r"\$\w+", query) in ([], ["$timeFilter"]) for query in queries.values()), uid
        numbers = {step["refId"] for step in rule["data"] if step["model"].get("type") == "reduce"}
        [tags] = {query.rpartition("GROUP BY ")[2] for query in queries.values()}
        text = " ".join(rule["annotations"].values())
        assert "${" not in text
        assert "$" not in "".join(rule["labels"].values())
        assert set(re.findall(r"\$values\.(\w+)", text)) <= numbers, uid
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= set(re.findall(r'"(\w+)"', tags)), uid
        assert len(re.findall(r"{{-? *with", text)) == len(re.findall(r"{{ *end *}}", text)), uid


def test_a_rule_links_to_a_panel_of_the_dashboard(grafana):
    panels = {panel["id"]: panel["title"] for panel in grafana.panels}
    for rule in grafana.rules.values():
        assert rule["dashboardUid"] == grafana.dashboard["uid"]
    linked = {uid: panels[rule["panelId"]] for uid, rule in grafana.rules.items()}
    assert linked == {
        "forebay-device-alarm-critical": "Open alarms",
        "forebay-device-alarm-warning": "Open alarms",
        "forebay-gateway-silent": "Last heartbeat",
    }


def test_alerts_go_to_the_contact_point_whose_address_comes_from_the_environment(grafana):
    [point] = grafana.provisioned["alerting/contact-points.yaml"]["contactPoints"]
    [receiver] = point["receivers"]
    assert receiver["settings"]["url"] == "$FOREBAY_ALERT_WEBHOOK"
    [policy] = grafana.provisioned["alerting/policies.yaml"]["policies"]
    assert {policy["receiver"], *(route["receiver"] for route in policy["routes"])} == {point["name"]}
    labels = {label for route in policy["routes"] for label, _, _ in route["object_matchers"]}
    assert all(labels <= rule["labels"].keys() for rule in grafana.rules.values())


# -- queries -------------------------------------------------------------------------------------------------

real = pytest.mark.real


@real
def test_variables_offer_what_the_gateway_has(grafana, influxdb, plant, last_hour):
    offered = grafana.options(influxdb, last_hour())
    assert offered["gateway"] == ["north"]
    assert offered["device"] == sorted(PRESSES)
    assert offered["channel"] == ["guard", "mode", "strokes", "temperature"]
    assert offered["quantity"] == ["guard", "mode", "strokes", "temperature"]  # no raw, and none of our own


@real
def test_every_query_of_the_dashboard_gives_rows(grafana, influxdb, plant, last_hour):
    everything = last_hour()
    grafana.options(influxdb, everything)
    empty = [query.name for query in grafana.queries() if not grafana.rows(influxdb, query, everything)]
    assert not empty


@real
@pytest.mark.parametrize("device", PRESSES)
def test_every_query_about_a_device_gives_its_rows_alone(grafana, influxdb, plant, last_hour, device):
    one = last_hour(device=[device])
    grafana.options(influxdb, one)
    for query in grafana.queries():
        rows = grafana.rows(influxdb, query, one)
        assert {row["device"] for row in rows if "device" in row} <= {device}, query.name
        if "Open alarms/" in query.name and device != PRESSES[0]:
            assert not rows
        elif query.repeat:
            chosen = last_hour(device=[device], quantity=["temperature"], gateway="north")
            assert grafana.rows(influxdb, query, chosen), query.name
        else:
            assert rows, query.name


@real
def test_a_gateway_of_a_hostile_name_is_found(grafana, influxdb, cloud, now_ns, last_hour):
    """Not a name that a gateway can have today; but what is stored under one must not break a query."""
    name = r"north/plant \(1\)".replace("\\", "").replace(" ", r"\ ")
    influxdb.write(f'gateway,gateway={name} state="alive",store_bytes=1.0,store_limit_bytes=2.0 {now_ns}')
    seen = last_hour()
    assert grafana.options(influxdb, seen)["gateway"] == [GATEWAY]
    [query] = [query for query in grafana.queries() if query.name == "Store/A"]
    [row] = grafana.rows(influxdb, query, seen)
    assert row["fill"] == 50


@real
def test_means_are_weighted_by_count_over_windows_and_their_supplements(grafana, influxdb, plant, last_hour):
    queries = {query.name: query for query in grafana.queries()}
    for chosen in ([PRESSES[0]], [PRESSES[1], PRESSES[2]]):
        seen = last_hour(gateway="north", device=chosen, quantity=["temperature"])
        means = grafana.rows(influxdb, queries["$quantity/mean"], seen)
        lows, highs = (grafana.rows(influxdb, queries[f"$quantity/{edge}"], seen) for edge in ("min", "max"))
        rows = np.concatenate([plant[device] for device in chosen])
        starts = np.unique(rows["time_ns"] // WINDOW_NS * WINDOW_NS)
        assert [row["time"] for row in means] == starts.tolist()
        for start, mean, low, high in zip(starts, means, lows, highs, strict=True):
            window = rows[rows["time_ns"] // WINDOW_NS * WINDOW_NS == start]
            assert mean["mean"] == pytest.approx(np.average(window["mean"], weights=window["count"]))
            assert (low["min"], high["max"]) == (window["min"].min(), window["max"].max())
            assert mean["unit"] == "Cel"


@real
def test_an_account_is_summed_over_devices_and_not_over_time(grafana, influxdb, plant, last_hour):
    seen = last_hour()
    grafana.options(influxdb, seen)
    queries = {query.name: query for query in grafana.queries()}
    *_, last = grafana.rows(influxdb, queries["Account/A"], seen)
    assert (last["produced"], last["stored"], last["waiting"]) == (300, 270, 21)
    [rejected] = grafana.rows(influxdb, queries["Rejected and dropped/A"], seen)
    assert rejected["sum_last_rejected_malformed"] == 6
    assert rejected["sum_last_dropped_overrun"] == 3


@real
def test_an_open_alarm_is_shown_with_its_sentence(grafana, influxdb, plant, last_hour):
    [query] = [query for query in grafana.queries() if query.name == "Open alarms/A"]
    [row] = grafana.rows(influxdb, query, last_hour(gateway="north"))
    assert (row["device"], row["channel"], row["detector"]) == (PRESSES[0], "temperature", "range")
    assert row["reason"] == 'it is "97.5" Cel, open'


# -- rules ---------------------------------------------------------------------------------------------------


def fired(instances: list[Any]) -> list[dict[str, str]]:
    return [instance.labels for instance in instances if instance.firing]


@real
def test_a_device_alarm_fires_from_its_opening_to_its_closing(grafana, influxdb, cloud, now_ns):
    rule, now_ms = "forebay-device-alarm-critical", now_ns // 1_000_000
    old_ns = now_ns - 100 * 86_400 * SECOND_NS
    labels = {"gateway": "north", "device": "press-1", "channel": "temperature", "unit": "Cel", "detector": "range"}
    assert grafana.evaluate(influxdb, rule, now_ms) == []
    cloud.send(AlarmBody([alarm("open", old_ns)]), "press-1")
    [instance] = grafana.evaluate(influxdb, rule, now_ms)
    assert instance.firing
    assert instance.labels == labels
    assert instance.values == {"open": 1, "value": 97.5, "low": 0, "high": 95, "score": 1.2}
    cloud.send(AlarmBody([alarm("closed", old_ns + 1)]), "press-1")
    assert grafana.evaluate(influxdb, rule, now_ms) == []
    cloud.send(AlarmBody([alarm("open", old_ns + 2)]), "press-1")
    assert fired(grafana.evaluate(influxdb, rule, now_ms)) == [labels]
    cloud.send(AlarmBody([alarm("open", old_ns)]), "press-1")  # an older record that comes late changes nothing
    assert fired(grafana.evaluate(influxdb, rule, now_ms)) == [labels]


@real
def test_an_alarm_without_a_band_fires_too(grafana, influxdb, cloud, now_ns):
    cloud.send(AlarmBody([alarm("open", now_ns, low=np.nan, high=np.inf, score=np.nan)]), "press-1")
    [instance] = grafana.evaluate(influxdb, "forebay-device-alarm-critical", now_ns // 1_000_000)
    assert instance.firing
    assert instance.values == {"open": 1, "value": 97.5}


@real
def test_alarms_of_a_series_are_told_apart_by_detector_and_routed_by_severity(grafana, influxdb, cloud, now_ns):
    opened = [
        alarm("open", now_ns, "critical", "range"),
        alarm("open", now_ns + 1, "warning", "zscore"),
        alarm("open", now_ns + 2, "info", "rate"),
        alarm("open", now_ns + 3, "warning", "stuck"),
        alarm("closed", now_ns + 4, "warning", "stuck"),
    ]
    cloud.send(AlarmBody(opened), "press-1")
    detectors = {
        severity: [
            labels["detector"]
            for labels in fired(grafana.evaluate(influxdb, f"forebay-device-alarm-{severity}", now_ns // 1_000_000))
        ]
        for severity in ("critical", "warning")
    }
    assert detectors == {"critical": ["range"], "warning": ["zscore"]}


@real
def test_a_gateway_is_silent_without_a_heartbeat_or_once_its_broker_lost_it(grafana, influxdb, cloud, now_ns):
    def beat(gateway: str, ago_s: float) -> None:
        at_ns = now_ns - int(ago_s * SECOND_NS)
        cloud.send(Heartbeat(at_ns, "forebay 1", "d1", 1, 2, 0, 0, 0), gateway=gateway)

    def lost(gateway: str, ago_s: float) -> None:
        cloud.send(Heartbeat(0, "", ""), gateway=gateway, at_ns=now_ns - int(ago_s * SECOND_NS))

    def silent(later_s: float = 0) -> list[str]:
        instances = grafana.evaluate(influxdb, "forebay-gateway-silent", int(now_ns / 1e6 + later_s * 1000))
        assert {labels for instance in instances for labels in instance.labels} == {"gateway"}
        return sorted(labels["gateway"] for labels in fired(instances))

    assert grafana.evaluate(influxdb, "forebay-gateway-silent", now_ns // 1_000_000) == []  # NoData
    beat("alive", 30)
    assert silent() == []
    beat("vanished", 35 * 60 + 1)
    beat("lost", 60)
    lost("lost", 10)
    beat("back", 60)
    lost("back", 40)
    beat("back", 20)
    beat("gone for a month".replace(" ", "-"), 31 * 86_400)
    assert silent() == ["lost", "vanished"]
    assert silent(later_s=2400) == ["alive", "back", "lost", "vanished"]
    beat("vanished", 1)
    beat("lost", 1)
    assert silent() == []
