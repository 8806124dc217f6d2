from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from devices.errors import ConfigError, ForebayError, ProfileError
from devices.quantities import Duration, Rate, Size
from edge.config import EdgeConfig, load_config

DESIGN = """
gateway = "pump-station-7"

[uplink]
broker = "mqtts://broker.example.com"
password_file = "/etc/forebay/uplink.password"
max_rate = "64 KiB/s"

[store]
path = "/var/lib/forebay/edge.db"
max_size = "256 MiB"
when_full = "degrade"

[source.pump1]
driver = "serial"
port = "/dev/serial/by-id/usb-FTDI_A50285BI"
profile = "acme-p100"

[source.plant]
driver = "mqtt"
broker = "mqtt://localhost"
topics = ["plant/{device}/{channel}"]
profile = "json-value"

[source.host]
driver = "host"
every = "1 s"
"""
SHORT = 'gateway = "g"\nuplink.broker = "mqtt://localhost"\nsource.host.driver = "host"\n'


def config_of(folder: Path, text: str) -> EdgeConfig:
    path = folder / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, DESIGN)
    assert config.gateway == "pump-station-7"
    assert config.uplink.max_rate == Rate.parse("64 KiB/s")
    assert config.store.max_size == Size.parse("256 MiB")
    pump, plant, host = (config.source[name] for name in ("pump1", "plant", "host"))
    assert (pump.device, pump.driver, pump.profile.id) == ("pump1", "serial", "acme-p100@1")
    assert plant.options.topics == ["plant/{device}/{channel}"]
    assert (host.profile.name, host.options.every) == ("host", Duration.parse("1 s"))


def test_the_date_of_a_trusted_clock_stands_with_or_without_quotes(tmp_path: Path) -> None:
    quoted = config_of(tmp_path, DESIGN + '[clock]\ntrust_after = "2026-03-01"\n')
    bare = config_of(tmp_path, DESIGN + "[clock]\ntrust_after = 2026-03-01\n")
    assert bare.clock.trust_after_ns == 1_772_323_200 * 10**9
    assert bare == quoted
    assert bare.digest == quoted.digest


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = config_of(tmp_path, SHORT)
    assert config.store.commit_delay == Duration.parse("250 ms")
    assert config.uplink.receipt_timeout == Duration.parse("10 s")
    assert config.uplink.max_rate is None
    assert config.status.address == ("127.0.0.1", 9273)
    assert config.limits.series == 10_000


def test_a_driver_takes_defaults_from_the_profile_below_its_own_keys(tmp_path: Path) -> None:
    source = '[source.tank]\ndriver = "serial"\nport = "/dev/ttyUSB0"\nprofile = "acme-d20"\n'
    assert config_of(tmp_path, SHORT + source).source["tank"].options.baud_rate == 19200
    assert config_of(tmp_path, SHORT + source + "baud_rate = 4800\n").source["tank"].options.baud_rate == 4800


def test_a_source_changes_single_keys_of_its_profile(tmp_path: Path) -> None:
    source = """
    [source.plant]
    driver = "mqtt"
    broker = "mqtt://localhost"
    topics = ["a/{channel}"]
    profile = "json-value"
    codec.time = "ts"
    channel.flow = { unit = "L/min", range = [0, 9] }
    """
    profile = config_of(tmp_path, SHORT + source).source["plant"].profile
    spec = profile.series("plant", "flow")
    assert spec is not None
    assert (spec.unit, spec.filters["range"]["high"]) == ("L/min", 9.0)
    assert (profile.codec.options.time, profile.codec.options.value) == ("ts", "value")


def test_profiles_of_ones_own_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "boiler.toml").write_text(
        'name = "boiler"\nversion = "2"\ncodec.name = "json"\n[channel.t]\n', encoding="utf-8"
    )
    source = '[source.b]\ndriver = "serial"\nport = "/dev/x"\nprofile = "{}"\n'
    by_name = config_of(tmp_path, 'profiles = ["mine"]\n' + SHORT + source.format("boiler"))
    by_path = config_of(tmp_path, SHORT + source.format("mine/boiler.toml"))
    assert by_name.source["b"].profile.id == by_path.source["b"].profile.id == "boiler@2"


MQTT = 'driver = "mqtt"\nbroker = "mqtt://localhost"\nprofile = "json-value"\n'
WRONG = [
    (SHORT + "[source.plant]\n" + MQTT + "topcs = []", "unknown field `topcs`: gateway.toml [source.plant]"),
    (SHORT + "[source.plant]\n" + MQTT, "missing field `topics`: gateway.toml [source.plant]"),
    (
        SHORT + "[source.plant]\n" + MQTT + "topics = ['plant/{device}/{channel}', 'plant/#']",
        "'plant/{device}/{channel}' and 'plant/#' both match 'plant/b/c', and a broker may send such a message once "
        "for each of them: leave one out, or make it narrower: gateway.toml [source.plant]",
    ),
    (
        SHORT + "[source.a]\n" + MQTT + "topics = ['p/{device}/{channel}']\n"
        "[source.b]\n" + MQTT.replace("localhost", "localhost:1883") + "topics = ['x', '+/{device}/{channel}']",
        "[source.a] and [source.b] would both take a message of 'p/b/c' at localhost:1883 for samples of the same",
    ),
    (SHORT + '[source."a b"]\ndriver = "host"\nevery = 3', 'gateway.toml [source."a b"] every'),
    (SHORT + "[source.x]\n", "missing field `driver`: gateway.toml [source.x]"),
    (SHORT + "[source.x]\ndriver = 3", "expected a text: gateway.toml [source.x] driver"),
    (SHORT + '[source.x]\ndriver = "seriel"', "driver `seriel` is not installed; did you mean `serial`?: gateway.toml"),
    (
        SHORT + '[source.x]\ndriver = "serial"\nport = "a"',
        "missing field `profile`: gateway.toml [source.x]; known are",
    ),
    (
        SHORT + '[source.x]\ndriver = "host"\nprofile = "hots"',
        "there is no profile `hots`: gateway.toml [source.x]; did",
    ),
    (SHORT + '[source.x]\ndriver = "host"\nprofile = "no.toml"', "no.toml: gateway.toml [source.x] profile; its path"),
    (SHORT + '[source.x]\ndriver = "host"\ncodec = 3', "expected a table: gateway.toml [source.x] codec"),
    (SHORT + "source.x = 3", "expected a table: gateway.toml [source.x]"),
    (SHORT + '[source."a\\nb"]\ndriver = "host"', "a device's name"),
    (SHORT + '[source.x]\ndriver = "host"\nchannel.cpu.rnage = 1', "gateway.toml [source.x.channel.cpu]"),
    (SHORT + "stroe.path = 'x'", "unknown field `stroe`: gateway.toml; did you mean `store`?"),
    (SHORT + "heartbeat = '0 s'", "`heartbeat` and `ledger` are at least 1 s: gateway.toml"),
    (SHORT + "profiles = 'x'", "expected `array`, got `str`: gateway.toml profiles"),
    (SHORT + "[store]\nmax_sise = 1", "unknown field `max_sise`: gateway.toml [store]; did you mean `max_size`?"),
    (SHORT + "[store]\nmax_size = '1 MiB'", "`max_size` is at least 8 MiB, not 1 MiB: gateway.toml [store]"),
    (SHORT + "[store]\nwhen_full = 'panic'", "gateway.toml [store] when_full"),
    (SHORT + "[store]\ncommit_delay = '2 min'", "at most 1 min"),
    (SHORT + "[store]\npath = ''", "`path` names the store's file"),
    (SHORT + "[journal]\nkeep = '1'", "gateway.toml [journal] keep"),
    (SHORT + "[limits]\nseries = 0", "`series` is at least 1"),
    (SHORT + "[limits]\nmessage_bytes = '1 GiB'", "`message_bytes` lies between"),
    (SHORT + "[limits]\nintake_samples = 1", "`intake_samples` is at least 1024"),
    (SHORT + "[status]\nlisten = '9273'", "`listen` is HOST:PORT"),
    (SHORT + "[status]\nlisten = 'localhost:99999'", "`listen` is HOST:PORT"),
    (SHORT + "store = 3", "expected `object`, got `int`: gateway.toml [store]"),
    (SHORT.replace('"g"', '"a/b"'), "`gateway` is made of letters"),
    (SHORT.replace('gateway = "g"', ""), "missing field `gateway`: gateway.toml"),
    (SHORT.replace('uplink.broker = "mqtt://localhost"', ""), "missing table [uplink]: gateway.toml"),
    (SHORT.replace('source.host.driver = "host"', ""), "missing table [source.NAME]: gateway.toml"),
    ('gateway = "g"\nsource.h.driver = "host"\n[uplink]', "missing field `broker`: gateway.toml [uplink]"),
    (SHORT + "uplink.password = 'hunter2'", "unknown field `password`: gateway.toml [uplink]; did you mean `password_"),
    (SHORT + "uplink.password_file = 'a'\nuplink.password_env = 'b'", "keep one of `password_file` and `password_env`"),
    (SHORT + "uplink.cert_file = 'a'", "`cert_file` needs `key_file`"),
    (SHORT + "uplink.keepalive = '1 s'", "`keepalive` lies between"),
    (SHORT + "uplink.max_rate = '1 B/s'", "`max_rate` is at least 128 B/s, not 1 B/s"),
    (SHORT + "uplink.max_rate = 65536", 'expected a rate with its unit, such as "64 KiB/s"'),
    (SHORT + "uplink.receipt_timeout = '1 ms'", "`receipt_timeout` is at least 1 s"),
    (SHORT + "uplink.frame_bytes = '2 MiB'", "`frame_bytes` lies between 16 KiB and `window_bytes`"),
    ("gateway = ", "gateway.toml is not TOML"),
]


@pytest.mark.parametrize(("text", "complaint"), WRONG)
def test_a_wrong_configuration_is_refused_with_the_path_of_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ForebayError) as caught:
        config_of(tmp_path, text)
    assert isinstance(caught.value, ConfigError | ProfileError)
    assert complaint in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (MQTT + "topics = ['p/{device}/{channel}']", MQTT + "topics = ['q/{device}/{channel}']"),
        (MQTT + "topics = ['p/{device}/{channel}']", MQTT + "topics = ['p/{device}/{channel}/raw']"),
        (MQTT + "topics = ['p/{channel}']", MQTT + "topics = ['p/{channel}']"),
        (MQTT + "topics = ['p/{device}']", MQTT.replace("localhost", "other") + "topics = ['p/{device}']"),
        (
            MQTT.replace("json-value", "mine/one.toml") + "topics = ['p/{device}']",
            MQTT.replace("json-value", "mine/two.toml") + "topics = ['p/{device}']",
        ),
    ],
    ids=["other topics", "other levels", "devices of their own", "other brokers", "other channels"],
)
def test_two_sources_may_listen_to_one_broker_as_long_as_they_make_other_series(
    tmp_path: Path, first: str, second: str
) -> None:
    (tmp_path / "mine").mkdir()
    for name, channel in (("one", "t*"), ("two", "rpm")):
        text = f'name = "{name}"\nversion = "1"\ncodec.name = "json"\n[channel."{channel}"]\n'
        (tmp_path / "mine" / f"{name}.toml").write_text(text, encoding="utf-8")
    config = config_of(tmp_path, f"{SHORT}[source.a]\n{first}\n[source.b]\n{second}\n")
    assert {"a", "b"} < set(config.source)


def test_relative_paths_begin_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = tmp_path / "gateway", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    login = 'broker = "mqtts://h"\nca_file = "tls/ca.pem"\npassword_file = "../password"\ncert_file = ""\n'
    source = f'[source.plant]\ndriver = "mqtt"\nuser = "u"\ntopics = ["{{device}}"]\nprofile = "json-value"\n{login}'
    text = f'gateway = "g"\n[uplink]\n{login}[store]\npath = "edge.db"\n{source}'
    whole = config_of(here, text)
    assert whole.store.path == str(here / "edge.db")
    for keys in (whole.uplink, whole.source["plant"].options):
        assert keys.ca_file == str(here / "tls/ca.pem")
        assert keys.password_file == str(here / "../password")
        assert keys.cert_file == ""
    for folder, file in ((here, "gateway.toml"), (elsewhere, "../gateway/gateway.toml")):
        monkeypatch.chdir(folder)
        config = load_config(Path(file))
        assert Path(config.store.path).resolve() == here / "edge.db"
        assert Path(config.source["plant"].options.ca_file).resolve() == here / "tls/ca.pem"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*gateway.toml: No such file"):
        load_config(tmp_path / "gateway.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (5 * 2**20))
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load_config(tmp_path / "large.toml")
    (tmp_path / "latin.toml").write_bytes(b'gateway = "\xe4"')
    with pytest.raises(ConfigError, match=r"latin.toml is not TOML"):
        load_config(tmp_path / "latin.toml")


def test_the_digest_changes_with_the_file_and_with_a_profile(tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    text = SHORT + '[source.b]\ndriver = "serial"\nport = "/dev/x"\nprofile = "p.toml"\n'
    digests = []
    for version, extra in (("1", ""), ("1", ""), ("2", ""), ("2", "baud_rate = 4800\n")):
        profile.write_text(f'name = "p"\nversion = "{version}"\ncodec.name = "json"\n[channel.t]\n', encoding="utf-8")
        digests.append(config_of(tmp_path, text + extra).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert all(len(digest) == 16 for digest in digests)


def test_only_the_drivers_in_use_are_imported(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(SHORT, encoding="utf-8")
    program = (
        "import sys; from pathlib import Path; from edge.config import load_config;"
        f"load_config(Path({str(tmp_path / 'gateway.toml')!r}));"
        "print([m for m in ('serial', 'paho', 'devices.codecs.delimited') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
