"""compose.yaml and what it mounts: valid, closed to the outside, and every command of ours in it run for real.

No Docker engine runs here. So paths of containers become folders here, names of services 127.0.0.1 with free
ports, and nothing else changes: the commands, the environment and the mounted files are those of compose.yaml.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from simulators.parts import fetch, program
from simulators.servers import InfluxServer, ServerMissing, find_influxd, find_mosquitto

ROOT = Path(__file__).parents[2]
OURS = ("simulators", "edge", "ingester")
STORED_TIMEOUT_S = 120.0


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    """Against the compose specification's JSON schema, which the package check-jsonschema brings along."""
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_the_file_follows_the_compose_specification():
    done = check_schema(ROOT / "compose.yaml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("restart: unless-stopped", "restarts: unless-stopped"), ("cap_drop: [ALL]", "cap_drop: ALL")],
)
def test_the_specification_is_really_consulted(tmp_path, right, wrong):
    text = (ROOT / "compose.yaml").read_text()
    assert right in text
    broken = tmp_path / "compose.yaml"
    broken.write_text(text.replace(right, wrong))
    assert check_schema(broken).returncode == 1


def test_all_that_a_service_names_is_there(compose):
    for name, service in compose.services.items():
        assert set(service["networks"]) <= compose.document["networks"].keys(), name
        assert service.get("depends_on", {}).keys() <= compose.services.keys(), name
        for dependency in service.get("depends_on", {}):
            assert "healthcheck" in compose.services[dependency], f"{name} waits for the health of {dependency}"
            assert set(compose.services[dependency]["networks"]) & set(service["networks"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), volume
                assert volume.endswith(":ro"), volume
            else:
                assert source in compose.document["volumes"], volume
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert service["build"]["target"] in dockerfile()


def test_only_grafana_is_published_and_to_this_machine_alone(compose):
    published = {name: service["ports"] for name, service in compose.services.items() if "ports" in service}
    assert published == {"grafana": ["127.0.0.1:3000:3000"]}
    open_networks = {name for name, network in compose.document["networks"].items() if not network.get("internal")}
    outside = {name for name, service in compose.services.items() if open_networks & set(service["networks"])}
    assert outside == {"grafana"}
    assert not any("network_mode" in service or "privileged" in service for service in compose.services.values())


def test_images_are_pinned_and_name_no_registry(compose):
    for name, service in compose.services.items():
        if "build" not in service:
            assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)?:\d+(\.\d+)+", service["image"]), name


def test_our_programs_may_write_to_their_volume_alone(compose):
    for name in OURS:
        service = compose.services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_what_grafana_mounts_is_where_its_provider_looks(compose, grafana):
    mounted = dict(volume.split(":")[:2] for volume in compose.services["grafana"]["volumes"])
    [provider] = grafana.provisioned["dashboards/forebay.yaml"]["providers"]
    assert mounted["./cloud/grafana/dashboards"] == provider["options"]["path"]
    for path in grafana.provisioned:
        kind = path.split("/")[0]
        assert mounted[f"./cloud/grafana/provisioning/{kind}"] == f"/etc/grafana/provisioning/{kind}"


def test_grafana_is_given_every_variable_that_its_files_name(compose, grafana):
    text = yaml.safe_dump([grafana.provisioned[path] for path in grafana.provisioned if path != "alerting/rules.yaml"])
    named = set(re.findall(r"\$(\w+)", text))
    assert named == {name for name in compose.services["grafana"]["environment"] if name.startswith("FOREBAY_")}


def dockerfile() -> dict[str, list[str]]:
    """Stage -> its instructions, each on one line; the first is FROM."""
    text = (ROOT / "packaging" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    starts = [at for at, line in enumerate(lines) if line.startswith("FROM ")]
    stages = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return {stage[0].split(" AS ")[1]: stage for stage in stages}


def test_images_run_as_a_user_of_their_own():
    stages = dockerfile()
    assert [line for line in stages["base"] if line.startswith("USER ")] == ["USER forebay"]
    for target in ("edge", "cloud"):
        assert stages[target][0] == f"FROM base AS {target}"
        assert not any(line.startswith("USER ") for line in stages[target])
        assert any(line.startswith(f"COPY --from=build-{target} ") for line in stages[target])


def test_images_are_made_of_what_is_locked_and_of_what_the_build_may_see():
    lines = [line for stage in dockerfile().values() for line in stage]
    installs = [command for line in lines for command in line.split(" && ") if "pip install" in command]
    assert len(installs) == 3
    assert all("--require-hashes" in command or "--no-deps" in command for command in installs)
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert {source for sources in copies for source in sources} == {line[1:] for line in allowed if line[0] == "!"}


def test_the_image_of_the_cloud_gets_the_versions_that_are_tested():
    cloud, tested = (
        set(re.findall(r"^\S+==\S+", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
        for name in ("cloud.lock", "dev.lock")
    )
    assert cloud <= tested
    assert any(line.startswith("influxdb-client==") for line in cloud)


class Machine:
    """This machine in the place of the containers."""

    def __init__(self, compose, folder: Path, free_port, spawn) -> None:
        self._services = compose.services
        self._folder = folder
        self._spawn = spawn
        self.ports = {name: free_port() for name in ("mosquitto", "edge", "ingester", "influxdb")}
        self._hosts = {
            "mosquitto:1883": f"127.0.0.1:{self.ports['mosquitto']}",
            "edge:9273": f"127.0.0.1:{self.ports['edge']}",
            "influxdb:8086": f"127.0.0.1:{self.ports['influxdb']}",
            "0.0.0.0:9273": f"127.0.0.1:{self.ports['edge']}",
            "0.0.0.0:9465": f"127.0.0.1:{self.ports['ingester']}",
            "listener 1883": f"listener {self.ports['mosquitto']} 127.0.0.1",
        }

    def start(self, name: str):
        """Run the command of a service, as its container would."""
        service = self._services[name]
        places = self._mounts(name, service["volumes"])
        first, *arguments = service["command"]
        executable = find_mosquitto() if first == "mosquitto" else program(first)
        argv = [executable, *(self._here(argument, places) for argument in arguments)]
        # Nothing of our own environment but where programs and homes are: a container has no more.
        env = {**service.get("environment", {}), "PATH": os.environ["PATH"]}
        cleared = [f"-u{variable}" for variable in os.environ if variable.startswith("FOREBAY_INFLUXDB")]
        return self._spawn(["env", *cleared, *argv], env=env, cwd=self._folder)

    def _mounts(self, name: str, volumes) -> dict[str, str]:
        """Container path -> path here, of each volume: files are copied, with names and ports as they are here."""
        root = self._folder / name
        places = {}
        for volume in volumes:
            source, target = volume.split(":")[:2]
            place = root / target.lstrip("/")
            places[target] = str(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not source.startswith("."):
                place.mkdir()
            elif (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place)
            else:
                place.write_text((ROOT / source).read_text())
        for target, place in places.items():
            if Path(place).is_file():
                text = self._here(Path(place).read_text(), {at: to for at, to in places.items() if at != target})
                as_root = "user root\n" if name == "mosquitto" and os.geteuid() == 0 else ""
                Path(place).write_text(as_root + text)
        return places

    def _here(self, text: str, places) -> str:
        for there, here in {**self._hosts, **places}.items():
            text = text.replace(there, here)
        return text


@pytest.fixture
def machine(compose, tmp_path, free_port, spawn):
    return Machine(compose, tmp_path, free_port, spawn)


@pytest.fixture
def influxdb_of_compose(compose, machine, tmp_path):
    """InfluxDB 2.7, set up as its container sets itself up; where there is none, and not in CI, 1.8 in its place."""
    init = compose.services["influxdb"]["environment"]
    setup = {
        key: init[f"DOCKER_INFLUXDB_INIT_{key}"] for key in ("USERNAME", "PASSWORD", "ORG", "BUCKET", "ADMIN_TOKEN")
    }
    version = "2.7"
    try:
        find_influxd(version)
    except ServerMissing:
        if os.environ.get("CI"):
            raise
        version = "1.8"
    server = InfluxServer(tmp_path / "influxdb-data", version, port=machine.ports["influxdb"], database=setup["BUCKET"])
    server.user, server.password, server.org = setup["USERNAME"], setup["PASSWORD"], setup["ORG"]
    server.token = setup["ADMIN_TOKEN"]
    if version == "1.8":
        server.token = f"{server.user}:{server.password}"
        for name in ("ingester", "grafana"):
            compose.services[name]["environment"]["FOREBAY_INFLUXDB_TOKEN"] = server.token
    yield server
    server.kill()


@pytest.mark.real
def test_the_commands_of_compose_bring_samples_to_a_dashboard_and_a_lost_gateway_to_its_alert(
    compose, machine, influxdb_of_compose, grafana, view
):
    influxdb_of_compose.start()
    processes = {name: machine.start(name) for name in ("mosquitto", "ingester", "edge", "simulators")}
    for name, page in {"edge": "readyz", "ingester": "healthz"}.items():
        address = f"http://127.0.0.1:{machine.ports[name]}/{page}"
        processes[name].wait_until(lambda address=address: fetch(address) is not None, STORED_TIMEOUT_S, "ready")
    source = grafana.source(compose.services["grafana"]["environment"], influxdb_of_compose.url)

    def empty() -> list[str]:
        """The queries that give no rows yet."""
        for name, process in processes.items():
            assert process.running, f"{name}: {process.output()}"
        now_ms = time.time_ns() // 1_000_000
        seen = view(now_ms - 3_600_000, now_ms)
        grafana.options(source, seen)
        return [query.name for query in grafana.queries() if not grafana.rows(source, query, seen)]

    deadline_s = time.monotonic() + STORED_TIMEOUT_S
    while (missing := empty()) != ["annotation Gateway lost"] and time.monotonic() < deadline_s:
        time.sleep(1.0)
    assert missing == ["annotation Gateway lost"], processes["edge"].output()

    def silent() -> list[str]:
        instances = grafana.evaluate(source, "forebay-gateway-silent", time.time_ns() // 1_000_000)
        return [instance.labels["gateway"] for instance in instances if instance.firing]

    assert silent() == []
    processes.pop("edge").kill()  # its will is the broker's to publish
    deadline_s = time.monotonic() + STORED_TIMEOUT_S
    while empty() and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert silent() == ["compose"]
