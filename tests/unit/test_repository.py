"""What is committed: it names no registry and no one's machine, and all that is installed is locked."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
REGISTRY = re.compile(
    r"(?://|@)[a-z0-9.-]*(?:pypi|pythonhosted|golang|npmjs|maven|crates|debian)[a-z0-9.-]*\.(?:org|io|com)",
    re.IGNORECASE,
)
MACHINE = re.compile(r"(?<![\w.$}])/(?:work|farm|root|home/\w+|Users/\w+)/")


def committed() -> list[Path]:
    """The files that git knows or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=HERE,
        capture_output=True,
        check=True,
    )
    return [path for name in listing.stdout.decode().split("\0") if name and (path := HERE / name).is_file()]


@pytest.mark.parametrize("pattern", [REGISTRY, MACHINE], ids=["registry", "machine"])
def test_no_committed_file_names(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(HERE)}: {match.group()}"
        for path in committed()
        for match in pattern.finditer(path.read_text(errors="replace"))
    ]
    assert not found


def test_the_patterns_find_what_they_are_for() -> None:
    assert REGISTRY.search("--index-url https:" + "//files.python" + "hosted.org/simple")
    assert MACHINE.search("# via -r /ho" + "me/ada/forebay/requirements.in")
    assert not MACHINE.search("tests/work/of")


def normal(name: str) -> str:
    """A distribution's name as all spellings of it are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name, maxsplit=1)[0]).lower()


def locked(name: str) -> dict[str, list[str]]:
    """Package -> its hashes, of a lock."""
    packages: dict[str, list[str]] = {}
    package = ""
    for line in (HERE / "requirements" / name).read_text().splitlines():
        if "==" in line:
            package = normal(line)
            packages[package] = []
        elif "--hash=" in line:
            packages[package].append(line.strip())
    return packages


def test_each_dependency_is_locked_with_its_hashes() -> None:
    metadata = tomllib.loads((HERE / "pyproject.toml").read_text())
    needed = {normal(name) for name in metadata["project"]["dependencies"]}
    edge, everything = locked("edge.lock"), locked("dev.lock")
    assert needed <= edge.keys()
    extras = metadata["project"]["optional-dependencies"]
    for extra in ("fuzz", "plots"):  # few need them: `./task fuzz` and `./task bench week --plot` install them
        assert {normal(name) for name in extras.pop(extra)} <= locked(f"{extra}.lock").keys()
    needed |= {normal(name) for extra in extras.values() for name in extra} | {"setuptools"}
    assert needed <= everything.keys()
    assert all(edge.values())
    assert all(everything.values())


def test_the_gateway_gets_the_same_versions_as_the_tests() -> None:
    versions = [
        set(re.findall(r"^\S+==\S+", (HERE / "requirements" / name).read_text(), re.MULTILINE))
        for name in ("edge.lock", "dev.lock")
    ]
    assert versions[0] <= versions[1]
