"""What Grafana does with the files in cloud/grafana: load, fill in variables, query InfluxDB, evaluate rules.

Written after Grafana 12's own sources: the InfluxDB data source's `interpolateQueryExpr` and `Query.Build`, and
the reduce and threshold expressions of its alerting.
"""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cloud" / "grafana"
SECOND_MS = 1000
POINTS = 1000
"""Of a panel that is 1000 pixels wide."""


class Server(Protocol):
    """Answers InfluxQL with rows: columns, and the tags of GROUP BY."""

    def query(self, q: str) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Query:
    """One query of the dashboard, as its file has it."""

    name: str
    text: str
    min_interval: str = ""
    repeat: str = ""
    """The variable that the panel is repeated by: each copy sees one of its values."""


@dataclass
class View:
    """What somebody chose above the dashboard: a time range, and values of variables."""

    from_ms: int
    to_ms: int
    chosen: dict[str, str | list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Instance:
    """One series of a rule: its labels, whether the condition holds, and what `$values` has."""

    labels: dict[str, str]
    firing: bool
    values: dict[str, float]


@dataclass(frozen=True)
class DataSource:
    """Asks InfluxDB as Grafana's InfluxQL data source does."""

    address: str
    headers: Mapping[str, str]

    def query(self, q: str) -> list[dict[str, Any]]:
        """Rows with columns, tags of GROUP BY, and `measurement`. Raises where the answer is no 200 or an error."""
        body = urllib.parse.urlencode({"q": q}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.address, body, dict(self.headers))) as answer:
            [result] = json.load(answer)["results"]
        assert "error" not in result, result
        rows = []
        for series in result.get("series", []):
            shared = {"measurement": series.get("name", ""), **series.get("tags", {})}
            rows += [{**shared, **dict(zip(series["columns"], row, strict=True))} for row in series.get("values", [])]
        return rows


class Grafana:
    """The files of cloud/grafana, in front of one InfluxDB."""

    def __init__(self) -> None:
        self.dashboard = json.loads((FOLDER / "dashboards" / "gateway.json").read_text())
        self.provisioned = {
            path.relative_to(FOLDER / "provisioning").as_posix(): yaml.safe_load(path.read_text())
            for path in sorted((FOLDER / "provisioning").glob("*/*.yaml"))
        }

    @property
    def panels(self) -> list[dict[str, Any]]:
        return [panel for panel in self.dashboard["panels"] if panel["type"] != "row"]

    @property
    def variables(self) -> list[dict[str, Any]]:
        variables: list[dict[str, Any]] = self.dashboard["templating"]["list"]
        return variables

    @property
    def rules(self) -> dict[str, dict[str, Any]]:
        """uid -> rule."""
        return {
            rule["uid"]: rule for group in self.provisioned["alerting/rules.yaml"]["groups"] for rule in group["rules"]
        }

    def source(self, environment: Mapping[str, str], url: str) -> DataSource:
        """The provisioned data source, as an environment fills it in; at another URL than it says there."""
        [source] = self.provisioned["datasources/forebay.yaml"]["datasources"]

        def filled(text: str) -> str:
            return re.sub(r"\$(\w+)", lambda match: environment[match[1]], text)

        assert filled(source["url"]).startswith("http://")
        headers = {source["jsonData"]["httpHeaderName1"]: filled(source["secureJsonData"]["httpHeaderValue1"])}
        assert source["jsonData"]["httpMode"] == "POST"
        return DataSource(f"{url}/query?db={filled(source['jsonData']['dbName'])}&epoch=ms", headers)

    def queries(self) -> Iterator[Query]:
        """Every query of panels and annotations."""
        for panel in self.panels:
            for target in panel["targets"]:
                name = f"{panel['title']}/{target['refId']}"
                yield Query(name, target["query"], panel.get("interval", ""), panel.get("repeat", ""))
        for annotation in self.dashboard["annotations"]["list"]:
            yield Query(f"annotation {annotation['name']}", annotation["target"]["query"])

    def options(self, server: Server, view: View) -> dict[str, list[str]]:
        """The values that each variable offers, under what is chosen for those before it."""
        offered = {}
        for variable in self.variables:
            rows = server.query(self.rendered(Query(variable["name"], variable["query"]["query"]), view))
            values = {row.get("value") or row["name"] for row in rows}
            if variable["regex"]:
                pattern = re.compile(variable["regex"].strip("/"))
                values = {value for value in values if pattern.search(value)}
            offered[variable["name"]] = sorted(values)
            if variable["includeAll"] and "allValue" not in variable:
                view.chosen.setdefault(variable["name"], offered[variable["name"]])
            elif not variable["includeAll"] and values:
                view.chosen.setdefault(variable["name"], min(values))
        return offered

    def rendered(self, query: Query, view: View) -> str:
        """The InfluxQL that InfluxDB gets. A variable without a choice is All, or empty where there is no All."""
        variables = {variable["name"]: variable for variable in self.variables}

        def value(match: re.Match[str]) -> str:
            variable = variables.get(match[1])
            if variable is None:
                return match[0]
            chosen = view.chosen.get(match[1])
            return variable.get("allValue", "") if chosen is None else _formatted(chosen, bool(variable["multi"]))

        text = re.sub(r"\$(\w+)", value, query.text)
        interval_ms = max(_rounded((view.to_ms - view.from_ms) / POINTS), self._min_interval_ms(query))
        return _expanded(text, view.from_ms, view.to_ms, interval_ms)

    def rows(self, server: Server, query: Query, view: View) -> list[dict[str, Any]]:
        return server.query(self.rendered(query, view))

    def evaluate(self, server: Server, uid: str, now_ms: int) -> list[Instance]:
        """The series of a rule at a time; none where Grafana would say NoData."""
        rule = self.rules[uid]
        series: dict[str, dict[frozenset[tuple[str, str]], list[float]]] = {}
        numbers: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        firing: dict[frozenset[tuple[str, str]], bool] = {}
        for step in rule["data"]:
            ref, model = step["refId"], step["model"]
            if step["datasourceUid"] != "__expr__":
                span = step["relativeTimeRange"]
                from_ms, to_ms = (now_ms - span[end] * SECOND_MS for end in ("from", "to"))
                series[ref] = _series(server.query(_expanded(model["query"], from_ms, to_ms, model["intervalMs"])))
            elif model["type"] == "reduce":
                how = {"count": len, "last": lambda values: values[-1]}[model["reducer"]]
                numbers[ref] = {labels: float(how(values)) for labels, values in series[model["expression"]].items()}
            else:
                assert model["type"] == "threshold"
                [condition] = model["conditions"]
                [bound] = condition["evaluator"]["params"]
                above = {"gt": True, "lt": False}[condition["evaluator"]["type"]]
                source = numbers[model["expression"]]
                firing = {labels: value > bound if above else value < bound for labels, value in source.items()}
                assert ref == rule["condition"]
        return [
            Instance(dict(labels), held, {ref: of[labels] for ref, of in numbers.items() if labels in of})
            for labels, held in firing.items()
        ]

    def _min_interval_ms(self, query: Query) -> int:
        [source] = self.provisioned["datasources/forebay.yaml"]["datasources"]
        number, unit = re.fullmatch(r"(\d+)([sm])", query.min_interval or source["jsonData"]["timeInterval"]).groups()
        return int(number) * {"s": 1, "m": 60}[unit] * SECOND_MS


def _formatted(chosen: str | Sequence[str], multi: bool) -> str:
    if isinstance(chosen, str):
        return _escaped(chosen)
    assert multi
    return f"({'|'.join(map(_escaped, chosen))})"


def _escaped(value: str) -> str:
    return re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\g<0>", value)


def _rounded(interval_ms: float) -> int:
    """To the next step that Grafana's intervals have; enough of them for here."""
    return next(step for step in (1000, 2000, 5000, 10000, 20000, 60000, 600000, 10**9) if interval_ms <= step)


def _expanded(text: str, from_ms: int, to_ms: int, interval_ms: int) -> str:
    text = text.replace("$timeFilter", f"time >= {from_ms}ms and time <= {to_ms}ms")
    return text.replace("$__interval_ms", str(interval_ms)).replace("$__interval", f"{interval_ms}ms")


def _series(rows: list[dict[str, Any]]) -> dict[frozenset[tuple[str, str]], list[float]]:
    """Rows by labels, as an alert takes them: one column of numbers beside time and tags."""
    series: dict[frozenset[tuple[str, str]], list[float]] = {}
    for row in rows:
        values = [value for name, value in row.items() if name != "time" and not isinstance(value, str)]
        labels = frozenset((n, v) for n, v in row.items() if isinstance(v, str) and n != "measurement")
        [value] = values
        series.setdefault(labels, []).append(value)
    return series


@pytest.fixture
def grafana() -> Grafana:
    return Grafana()


@pytest.fixture
def view() -> type[View]:
    """`view(from_ms, to_ms, {"device": ["press-001"]})`"""
    return View


@dataclass(frozen=True)
class Compose:
    """compose.yaml with the defaults of its variables filled in."""

    services: Mapping[str, Mapping[str, Any]]
    document: Mapping[str, Any]


@pytest.fixture
def compose() -> Compose:
    document = yaml.safe_load(_interpolated((ROOT / "compose.yaml").read_text()))
    return Compose(document["services"], document)


def _interpolated(text: str) -> str:
    """`${NAME:-default}` -> default, as where the environment has nothing; `$$` -> `$`."""
    filled = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", text)
    assert not re.search(r"(?<!\$)\$\{", filled), "a variable without a default"
    return filled.replace("$$", "$")
