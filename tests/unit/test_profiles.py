from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.drivers.host import read_host
from devices.errors import PluginError, ProfileError
from devices.model import SECOND_NS, Kind
from devices.profiles import (
    CATALOG,
    RESERVED_QUANTITIES,
    Profile,
    Reading,
    installed,
    is_name,
    legal_quantity,
    load,
    load_profile,
    profile_names,
)

HEAD = 'name = "pump"\nversion = "3"\ncodec.name = "json"\n'


def profile_of(folder: Path, text: str, head: str = HEAD) -> Profile:
    (folder / "pump.toml").write_text(head + text, encoding="utf-8")
    return load_profile("pump", [folder])


@pytest.mark.parametrize("name", sorted(path.stem for path in CATALOG.glob("*.toml")))
def test_every_profile_of_the_catalog_can_be_used(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    load("codecs", profile.codec.name)(profile.codec.options)
    for pattern in profile.channel:
        spec = profile.series("device-1", pattern.replace("*", "7"))
        assert spec is not None
        assert spec.profile == profile.id == f"{name}@{profile.version}"


def test_a_channel_becomes_a_series_with_everything_filled_in(tmp_path: Path) -> None:
    profile = profile_of(
        tmp_path,
        """
        time_resolution = "1 s"
        [channel.flow]
        quantity = "volume_flow"
        unit = "L/min"
        range = [0, 400]
        window = "1 s"
        expect_every = "1 min"
        on_delay = "3 s"
        severity = "critical"
        filters.rate.max_per_s = 50
        [channel.hours]
        kind = "counter"
        wrap = 65536
        [channel.running]
        kind = "state"
        mapping = { on = 1, off = 0 }
        """,
    )
    flow = profile.series("pump1", "flow")
    assert flow is not None
    assert flow.key == ("pump1", "flow", "L/min")
    assert (flow.quantity, flow.kind, flow.window_ns) == ("volume_flow", Kind.GAUGE, SECOND_NS)
    assert (flow.time_resolution_ns, flow.expect_every_ns) == (SECOND_NS, 60 * SECOND_NS)
    assert (flow.on_delay_ns, flow.severity, flow.profile) == (3 * SECOND_NS, "critical", "pump@3")
    assert set(flow.filters) == {"zscore", "range", "rate"}
    assert (flow.filters["range"]["low"], flow.filters["range"]["high"]) == (0.0, 400.0)
    assert flow.filters["rate"] == {"max_per_s": 50.0}
    assert "threshold" in flow.filters["zscore"]
    hours, running = profile.series("pump1", "hours"), profile.series("pump1", "running")
    assert hours is not None
    assert (hours.kind, hours.counter_wrap, hours.filters, hours.quantity) == (Kind.COUNTER, 65536, {}, "hours")
    assert running is not None
    assert (running.kind, running.texts, running.filters) == (Kind.STATE, {"on": 1, "off": 0}, {})


def test_the_options_of_a_series_filters_are_read_again_by_the_filters(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, '[channel."*"]\nrange = [0, inf]\nfilters.stuck = true\n')
    spec = profile.series("d", "c")
    assert spec is not None
    for name, options in spec.filters.items():
        assert all(math.isfinite(value) for value in options.values() if isinstance(value, float))
        load("filters", name).Options(**options)
    assert set(spec.filters) == {"zscore", "range", "stuck"}


def test_a_default_filter_can_be_turned_off_or_tuned(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, "[channel.a]\nfilters.zscore = false\n[channel.b]\nfilters.zscore.threshold = 12\n")
    quiet, tuned = profile.series("d", "a"), profile.series("d", "b")
    assert quiet is not None
    assert quiet.filters == {}
    assert tuned is not None
    assert tuned.filters["zscore"]["threshold"] == 12.0


def test_an_exact_name_goes_before_patterns_and_those_in_order(tmp_path: Path) -> None:
    profile = profile_of(
        tmp_path,
        """
        [channel."core_1*"]
        unit = "first"
        [channel."core_*"]
        unit = "second"
        [channel.core_10]
        unit = "exact"
        """,
    )
    units = {name: profile.series("d", name) for name in ("core_10", "core_11", "core_2", "fan")}
    assert {name: spec and spec.unit for name, spec in units.items()} == {
        "core_10": "exact",
        "core_11": "first",
        "core_2": "second",
        "fan": None,
    }


def test_a_key_of_the_message_may_feed_another_channel_and_several_bits(tmp_path: Path) -> None:
    profile = profile_of(
        tmp_path,
        """
        [channel.temperature]
        source = "t.c10"
        scale = 0.1
        offset = -40
        [channel.running]
        source = "status"
        kind = "state"
        bit = 0
        [channel.fault]
        source = "status"
        kind = "state"
        bit = 3
        [channel.plain]
        [channel."m.*"]
        scale = 2
        """,
    )
    assert profile.readings("t.c10") == (Reading("temperature", 0.1, -40.0, None),)
    assert profile.readings("status") == (Reading("running", 1.0, 0.0, 0), Reading("fault", 1.0, 0.0, 3))
    assert profile.readings("plain") == (Reading("plain", 1.0, 0.0, None),)
    assert profile.readings("m.x") == (Reading("m.x", 2.0, 0.0, None),)
    assert profile.readings("temperature") == ()
    assert profile.readings("other") == ()


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, "ü" * 101, "\u202e", "tab\t"])
def test_an_unusable_name_is_no_series(tmp_path: Path, name: str) -> None:
    profile = profile_of(tmp_path, '[channel."*"]')
    assert profile.series("d", name) is None
    assert profile.series(name, "c") is None
    assert not is_name(name)


@pytest.mark.parametrize(
    ("channel", "quantity"),
    [
        ("temperature", "temperature"),
        ("Motor temp.", "Motor_temp."),
        ("m/1 °C", "m_1_C"),
        ("alarm", "alarm_value"),
        ("flow_raw", "flow_raw_value"),
        ("_measurement", "measurement"),
        ("ärger", "ärger"),
        ("!", "value"),
    ],
)
def test_a_channel_without_a_quantity_gets_a_legal_one(channel: str, quantity: str) -> None:
    assert legal_quantity(channel) == quantity


@given(st.text(max_size=60))
def test_a_quantity_made_of_any_name_may_stand_in_a_profile(channel: str) -> None:
    quantity = legal_quantity(channel)
    assert quantity not in RESERVED_QUANTITIES
    assert not quantity.endswith("_raw")
    assert not quantity.startswith("_")
    assert quantity
    assert not set(quantity) & set(" ,=\"'\\\n#")
    assert legal_quantity(quantity) == quantity


WRONG = [
    ("[channel.flow]\nrnage = [0, 1]", "unknown field `rnage`: pump.toml [channel.flow]; did you mean `range`?"),
    ('[channel."a b"]\nunit = 3', 'expected `str`, got `int`: pump.toml [channel."a b"] unit'),
    ("[channel.flow]\nrange = [1, 0]", "`range` runs from low to high, not from 1.0 to 0.0: pump.toml [channel.flow]"),
    ("[channel.flow]\nrange = [nan, 0]", "`range` runs from low to high"),
    ("[channel.flow]\nrange = [1]", "expected `array` of length 2, got 1: pump.toml [channel.flow] range"),
    ("[channel.flow]\nwindow = 10", 'expected a duration with its unit, such as "10 s", not 10: pump.toml [channel'),
    ('[channel.flow]\nwindow = "10"', "pump.toml [channel.flow] window"),
    ('[channel.flow]\nwindow = "0 s"', "`window` is at least 1 ms"),
    ('[channel.flow]\nwindow = "1500 us"', "`window` is at least 1 ms, in whole milliseconds"),
    ('[channel.flow]\nkind = "guage"', "pump.toml [channel.flow] kind"),
    ('[channel.flow]\nquantity = "alarm"', "Forebay writes measurements of this name itself: pump.toml [channel.flow]"),
    ('[channel.flow]\nquantity = "flow_raw"', "Forebay writes measurements of this name itself"),
    ('[channel.flow]\nquantity = "a b"', "`quantity` is made of letters"),
    ('[channel.flow]\nquantity = "_time"', "`quantity` is made of letters"),
    ('[channel.flow]\nunit = "a\\nb"', "`unit` has at most"),
    ("[channel.flow]\nscale = 0", "`scale` is not 0"),
    ("[channel.flow]\noffset = inf", "`scale` and `offset` are finite"),
    ("[channel.flow]\ndeadband = 1", "`deadband` lies between 0 and 1"),
    ("[channel.flow]\ntolerance = -1", "`tolerance` and `wrap` are finite and not negative"),
    ('[channel.flow]\nexpect_every = "0 s"', "longer than nothing"),
    ("[channel.flow]\nbit = 1", '`mapping` and `bit` need `kind = "state"`: pump.toml [channel.flow]'),
    ("[channel.flow]\nmapping.on = 1", '`mapping` and `bit` need `kind = "state"`'),
    ('[channel.flow]\nkind = "state"\nbit = 53', "`bit` lies between 0 and 52"),
    ('[channel.flow]\nkind = "state"\nbit = 1\nscale = 2', "a `bit` is not scaled"),
    ('[channel.flow]\nkind = "state"\nmapping.on = nan', "finite numbers"),
    ("[channel.flow]\nwrap = 10", '`wrap` needs `kind = "counter"`'),
    ('[channel."f*"]\nsource = "x"', "`source` belongs to one channel, not to a pattern"),
    ('[channel."a\\tb"]', "printable bytes"),
    ("[channel.flow]\nfilters.zscroe = true", "filter `zscroe` is not installed; did you mean `zscore`?"),
    ("[channel.flow]\nfilters.zscroe = true", "pump.toml [channel.flow.filters.zscroe]"),
    ("[channel.flow]\nfilters.zscore.tau = 1", "unknown field `tau`: pump.toml [channel.flow.filters.zscore]"),
    ("[channel.flow]\nfilters.zscore.tau_s = -1", "pump.toml [channel.flow.filters.zscore]"),
    ("[channel.flow]\nfilters.rate = true", "missing field `max_per_s`: pump.toml [channel.flow.filters.rate]"),
    ("[channel.flow]\nfilters.zscore = 3", "pump.toml [channel.flow] filters"),
    ("channel.flow = 3", "expected `object`, got `int`: pump.toml channel"),
    ('time_resolution = "0 s"\n[channel.flow]', "`time_resolution` is longer than nothing: pump.toml"),
    ("", "`channel` has no tables"),
    ("chanel.flow.unit = 1", "unknown field `chanel`: pump.toml; did you mean `channel`?"),
    ("[driver.serial]\nbaudrate = 9600\n[channel.a]", "unknown field `baudrate`: pump.toml [driver.serial]; did you"),
    (
        '[driver.serial]\nbaud_rate = "fast"\n[channel.a]',
        "expected `int`, got `str`: pump.toml [driver.serial] baud_rate",
    ),
    (
        "[driver.seral]\n[channel.a]",
        "driver `seral` is not installed; did you mean `serial`?: pump.toml [driver.seral]",
    ),
    ("codec.tmie = 'x'\n[channel.a]", "unknown field `tmie`: pump.toml [codec]; did you mean `time`?"),
    ("codec.channel = 'x'\n[channel.a]", "channel needs value"),
    ("[channel.a", "pump.toml is not TOML"),
    ("[channel.a]\n[channel.a]", "pump.toml is not TOML"),
]


@pytest.mark.parametrize(("text", "complaint"), WRONG)
def test_a_wrong_profile_is_refused_with_the_path_of_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile_of(tmp_path, text)
    assert complaint in str(caught.value)
    assert "pump.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        ('name = "pmup"\nversion = "1"\ncodec.name = "json"\n', "`name` is 'pmup', and the file is called pump.toml"),
        ('name = "a/b"\nversion = "1"\ncodec.name = "json"\n', "`name` is made of letters"),
        ('version = "1"\ncodec.name = "json"\n', "missing field `name`: pump.toml"),
        ('name = "pump"\ncodec.name = "json"\n', "missing field `version`: pump.toml"),
        ('name = "pump"\nversion = 1\ncodec.name = "json"\n', "expected `str`, got `int`: pump.toml version"),
        ('name = "pump"\nversion = "a b"\ncodec.name = "json"\n', "`version` is a short text"),
        ('name = "pump"\nversion = "1"\n', "missing field `codec`: pump.toml"),
        ('name = "pump"\nversion = "1"\n[codec]\n', "`name` must be the name of a codec: pump.toml [codec]"),
        ('name = "pump"\nversion = "1"\ncodec.name = "jsn"\n', "codec `jsn` is not installed; did you mean `json`?"),
        ('name = "pump"\nversion = "1"\ncodec.name = "delimited"\n', "missing field `columns`: pump.toml [codec]"),
    ],
)
def test_a_wrong_head_is_refused(tmp_path: Path, head: str, complaint: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile_of(tmp_path, "[channel.a]\n", head)
    assert complaint in str(caught.value)


def test_a_profile_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ProfileError, match="there is no profile `json-valeu`; did you mean `json-value`"):
        load_profile("json-valeu")
    with pytest.raises(ProfileError, match=r"there is no profile `\.\./catalog/host`"):
        load_profile("../catalog/host")
    with pytest.raises(ProfileError, match=r"cannot read .*none.toml: No such file"):
        load_profile("/tmp/none.toml")


def test_a_folder_of_ones_own_goes_before_the_catalog(tmp_path: Path) -> None:
    (tmp_path / "host.toml").write_text('name = "host"\nversion = "mine"\ncodec.name = "json"\n[channel.cpu]\n')
    assert load_profile("host", [tmp_path]).id == "host@mine"
    assert load_profile("json-value", [tmp_path]).name == "json-value"
    assert load_profile(str(tmp_path / "host.toml")).version == "mine"
    profile_of(tmp_path, "[channel.a]")
    assert set(profile_names([tmp_path])) == {"pump", *profile_names()}


def test_single_keys_can_be_laid_over_a_profile(tmp_path: Path) -> None:
    profile = profile_of(
        tmp_path,
        """
        codec.time = "at"
        [channel.flow]
        unit = "L/min"
        range = [0, 400]
        filters.stuck.after_s = 60
        [channel."t_*"]
        unit = "Cel"
        """,
    )
    over = profile.overridden(
        {"time_format": "ms"},
        {"flow": {"range": [0, 100], "filters": {"zscore": False}}, "t_1": {"range": [0, 90]}, "new": {"unit": "V"}},
        ("gateway.toml", "source", "pump1"),
    )
    flow, first, second, new = (over.series("d", name) for name in ("flow", "t_1", "t_2", "new"))
    assert flow is not None
    assert (flow.unit, set(flow.filters), flow.filters["range"]["high"]) == ("L/min", {"range", "stuck"}, 100.0)
    assert first is not None
    assert (first.unit, first.filters["range"]["high"]) == ("Cel", 90.0)
    assert second is not None
    assert "range" not in second.filters
    assert new is not None
    assert new.unit == "V"
    assert (over.codec.options.time, over.codec.options.time_format) == ("at", "ms")
    assert profile.series("d", "new") is None


@pytest.mark.parametrize(
    ("codec", "channel", "complaint"),
    [
        ({"tiem": "x"}, {}, "unknown field `tiem`: gateway.toml [source.pump1.codec]"),
        ({}, {"flow": {"rnage": 1}}, "unknown field `rnage`: gateway.toml [source.pump1.channel.flow]"),
        ({}, {"flow": {"bit": 1}}, 'need `kind = "state"`: gateway.toml [source.pump1.channel.flow]'),
        ({}, {"flow": 3}, "expected `object`, got `int`: gateway.toml [source.pump1.channel.flow]"),
        ({}, {"flow": {"filters": {"x": True}}}, "not installed"),
    ],
)
def test_a_wrong_key_laid_over_a_profile_is_refused_with_its_path(
    tmp_path: Path, codec: dict[str, object], channel: dict[str, object], complaint: str
) -> None:
    profile = profile_of(tmp_path, "[channel.flow]")
    with pytest.raises(ProfileError) as caught:
        profile.overridden(codec, channel, ("gateway.toml", "source", "pump1"))
    assert complaint in str(caught.value)


def test_plugins_are_found_by_name() -> None:
    assert load("codecs", "json").__name__ == "JsonCodec"
    assert {"host", "mqtt", "serial"} <= set(installed("drivers"))
    assert {"range", "rate", "stuck", "zscore"} <= set(installed("filters"))


def test_a_plugin_that_is_not_installed_is_named_with_those_that_are() -> None:
    with pytest.raises(PluginError, match="the codec `jason` is not installed; did you mean `json`"):
        load("codecs", "jason")
    with pytest.raises(PluginError, match=r"the driver `teleport` is not installed; known are .*serial"):
        load("drivers", "teleport")


def test_the_host_profile_knows_everything_that_the_host_driver_reads() -> None:
    profile = load_profile("host")
    readings = read_host("/")
    assert {"cpu", "core_0", "memory", "disk"} <= set(readings)
    assert [key for key in readings if not profile.readings(key)] == []
