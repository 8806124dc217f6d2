"""The task script on machines where something is missing: it says what it does, and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
SCRIPTS = [HERE / "task", *sorted((HERE / "tools").glob("*.sh"))]
SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_plain_shell_and_can_be_run(script: Path, shell: str) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run([shell, "-n", str(script)], check=True)


def task(*arguments: str, path: str | None = None, script: Path = HERE / "task", cwd: Path = HERE) -> tuple[int, str]:
    """The return code and all that it wrote."""
    env = {**os.environ, **({"PATH": path} if path else {})}
    done = subprocess.run(
        [str(script), *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_help_names_every_task(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, said = task(*arguments, cwd=tmp_path)
    assert code == 0
    for name in ("demo", "test", "check", "bench"):
        assert f"./task {name}" in said


def test_an_unknown_task_is_refused_with_the_help() -> None:
    code, said = task("tset")
    assert code == 2
    assert "there is no task tset" in said
    assert "./task test" in said


def test_bench_without_a_name_lists_what_there_is() -> None:
    code, said = task("bench")
    assert code == 2
    names = {line.split()[0] for line in said.splitlines() if line.startswith("  ")}
    assert {"edge", "peers"} <= names
    assert names.isdisjoint({"harness", "outage", "gateways"})


def test_an_unknown_benchmark_is_refused() -> None:
    code, said = task("bench", "speed")
    assert code == 1
    assert "there is no benchmark speed" in said


@pytest.fixture
def bare_machine(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """`bare_machine(apt=True, user=0)`: runs `./task demo` where there is neither Python nor openssl."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def program(name: str, lines: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{lines}\n")
        (programs / name).chmod(0o755)

    def run(*, apt: bool, user: int) -> tuple[int, str]:
        for name in ("sh", "dirname", "env", "cat", "head", "cksum"):
            found = shutil.which(name)
            assert found
            (programs / name).symlink_to(found)
        program("id", f"echo {user}")
        if apt:
            program("apt-get", 'echo "apt-get $*"; exit 100')
        shutil.copy(HERE / "task", tmp_path / "task")
        return task("demo", path=str(programs), script=tmp_path / "task")

    return run


def test_without_apt_it_says_what_is_missing(bare_machine: Callable[..., tuple[int, str]]) -> None:
    code, said = bare_machine(apt=False, user=0)
    assert code == 1
    assert "missing on this machine: python3 python3-venv" in said
    assert "openssl" in said


def test_a_user_who_may_not_install_is_told_the_command(bare_machine: Callable[..., tuple[int, str]]) -> None:
    code, said = bare_machine(apt=True, user=1000)
    assert code == 1
    assert "apt-get install python3 python3-venv" in said
    assert "apt-get -q" not in said


def test_root_is_told_what_is_installed_before_it_is(bare_machine: Callable[..., tuple[int, str]]) -> None:
    code, said = bare_machine(apt=True, user=0)
    assert code == 1
    announced, installed = said.index("installing Debian packages: python3"), said.index("apt-get -q install -y")
    assert announced < installed
    assert "apt-get -q update" in said
    assert "apt-get could not install python3" in said
