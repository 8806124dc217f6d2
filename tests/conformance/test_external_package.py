"""A package that is installed beside Forebay adds a driver, a codec, a filter and a sink by its entry points alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = {"drivers": "metronome", "codecs": "hexnumber", "filters": "backwards", "sinks": "linefile"}


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the example was installed, by pip, without a network."""
    folder = tmp_path_factory.mktemp("external")
    source, target = folder / "source", folder / "target"
    shutil.copytree(HERE / "external", source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


def run(external: Path, *arguments: str | Path) -> str:
    """What Python says with the package installed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(external), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_of_its_parts_is_found_and_works(external: Path, tmp_path: Path) -> None:
    points = tmp_path / "points"
    said = run(external, HERE / "external" / "walk.py", points)
    assert said == "backwards alarm at 4 with score 1.5\n"
    assert points.read_text().splitlines() == [
        "beat,device=clock last=0.0 1",
        "beat,device=clock last=1.0 2",
        "beat,device=clock last=2.0 3",
        "beat,device=clock last=-1.0 4",
    ]


@pytest.mark.parametrize("role", NAMES)
def test_the_suite_of_its_role_holds_for_it(external: Path, role: str) -> None:
    suite = HERE / f"test_{role}.py"
    said = run(external, "-m", "pytest", suite, "-k", NAMES[role], "-p", "no:cacheprovider")
    assert " passed" in said
