"""The ingester's configuration file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import unquote

import pytest

from cloud.config import Config, load_config
from cloud.sinks.influxdb import InfluxSink
from cloud.sinks.sqlite import SqliteSink
from devices.errors import ConfigError


def load(folder: Path, text: str) -> Config:
    path = folder / "ingest.toml"
    path.write_text(text)
    return load_config(path)


SHORTEST = '[broker]\nurl = "mqtt://localhost"\n[sink]\nurl = "sqlite:points.db"\n'


def test_the_shortest_configuration_names_a_broker_and_a_sink(tmp_path: Path) -> None:
    config = load(tmp_path, SHORTEST)
    assert isinstance(config.sink, SqliteSink)
    assert config.session.broker == "mqtt://localhost"
    assert config.session.clean_start
    assert config.session.session_expiry_s == 0
    assert config.session.max_packet_bytes > config.limits.frame_size


def test_two_ingesters_of_one_configuration_have_two_client_ids(tmp_path: Path) -> None:
    assert load(tmp_path, SHORTEST).session.client_id != load(tmp_path, SHORTEST).session.client_id


@pytest.mark.parametrize(
    "url", ["sqlite:points.db", "sqlite:data%20of%20may/points.db", "sqlite:///var/lib/nowhere/points.db"]
)
def test_the_file_of_an_sqlite_sink_begins_at_the_folder_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    here, elsewhere = tmp_path / "50% of # a folder?", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load(here, SHORTEST.replace("sqlite:points.db", url))
    assert config.sink_url == url
    said = asyncio.run(config.sink.check())
    expected = "/var/lib/nowhere/points.db" if "///" in url else f"{here}/{unquote(url.removeprefix('sqlite:'))}"
    assert said.startswith(f"{expected} is not there yet")


def test_a_relative_token_file_begins_at_the_folder_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "influxdb.token").write_text("hush-hush\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink = 'url = "http://h:8086"\norg = "o"\nbucket = "b"\ntoken_file = "influxdb.token"\n'
    config = load(tmp_path, f'[broker]\nurl = "mqtts://h"\nca_file = "ca.pem"\n[sink]\n{sink}')
    assert isinstance(config.sink, InfluxSink)
    assert config.session.ca_file == str(tmp_path / "ca.pem")


def test_a_token_is_read_from_its_file_and_shown_nowhere(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hush-hush\n")
    token.chmod(0o600)
    text = (
        f'[broker]\nurl = "mqtt://h"\n[sink]\nurl = "https://h:8086"\norg = "o"\nbucket = "b"\ntoken_file = "{token}"'
    )
    config = load(tmp_path, text)
    assert isinstance(config.sink, InfluxSink)
    assert "hush-hush" not in repr(config)
    assert "hush-hush" not in repr(vars(config.sink))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[broker]\nurl = "mqtt://h"\n', "missing table [sink]"),
        (SHORTEST + "[limit]\n", "unknown field `limit`: ingest.toml; did you mean `limits`?"),
        (SHORTEST + "[limits]\nrow = 1\n", "unknown field `row`: ingest.toml [limits]; did you mean `rows`?"),
        (SHORTEST + "[limits]\nrows = 0\n", "`rows` must be at least 1"),
        (SHORTEST + '[limits]\nqueue_size = "1 KiB"\n', "`queue_size` must hold at least one frame"),
        (SHORTEST + '[limits]\nshutdown = "5"\n', "has no unit"),
        (SHORTEST + "database = 'x'\n", "unknown field `database`: ingest.toml [sink]"),
        (SHORTEST.replace("sqlite:", "sqlit:"), "did you mean `sqlite`?: ingest.toml [sink]"),
        (SHORTEST.replace("sqlite:points.db", "points.db"), "`url` names the sink"),
        (SHORTEST.replace("sqlite:points.db", "sqlite://points.db"), "sqlite:///FOLDER/FILE"),
        (SHORTEST.replace("[sink]", 'group = "a/b"\n[sink]'), "without /, + and #"),
        (
            SHORTEST.replace("sqlite:points.db", "http://user:hush@h:8086") + 'database = "d"\n',
            "without user, password or query",
        ),
        (SHORTEST.replace("sqlite:points.db", "http://h:8086"), "`database` says where the points go"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert said in str(refused.value)
    assert "hush" not in str(refused.value)
