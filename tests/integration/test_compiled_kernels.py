"""The kernels compiled ahead of time do what the others do, and need no Numba."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STREAM = """
import hashlib, sys
import numpy as np
from devices.model import Kind, SampleBatch, SeriesSpec
from edge import kernels
from edge.filters import Filters
from edge.windows import Windows

both = Filters(), Windows()
names = {"zscore": {}, "range": {"low": 19.0, "high": 21.0}, "stuck": {}, "rate": {"max_per_s": 1.0}}
for index, kind in enumerate(Kind):
    for operator in both:
        operator.add_series(index, SeriesSpec("device", f"channel{index}", "level", "", kind, filters=names))
rng = np.random.default_rng(1)
n = 5000
time_ns = np.arange(n) * 300_000_000 + rng.integers(-3_000_000_000, 1, n)
value = np.round(rng.normal(20.0, 0.3, n), 2)
batch = SampleBatch(rng.integers(0, 3, n).astype(np.int32), time_ns, value, np.zeros(n, np.uint8))
events = both[0].run(batch)
both[1].run(batch)
both[1].tick(int(time_ns.max()) + 10**12)
both[1].tick(int(time_ns.max()) + 2 * 10**12)
said = [events.tolist(), both[1].take().tolist(), both[1].changes().tolist()]
assert all(map(len, said))
print(kernels.backend, "numba" in sys.modules, hashlib.sha256(repr(said).encode()).hexdigest())
"""


def python(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="there is no C compiler here")
def test_an_extension_does_the_same_without_numba(tmp_path: Path) -> None:
    folder = tmp_path / "forebay" / "kernels"
    python("-m", "edge.kernels.build", str(folder), FOREBAY_KERNELS="numba")
    in_process = python("-c", STREAM, FOREBAY_KERNELS="numba").split()
    ahead = python("-c", STREAM, FOREBAY_KERNELS="", XDG_CACHE_HOME=str(tmp_path)).split()
    assert in_process[:2] == ["numba", "True"]
    assert ahead == ["compiled", "False", in_process[2]]
