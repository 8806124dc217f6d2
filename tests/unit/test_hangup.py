"""A hang-up while the daemon starts, before there is anything to reload."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHOW = "import sys; sys.argv[1:] = ARGV; import edge, os, signal; os.kill(os.getpid(), signal.SIGHUP); print('alive')"


@pytest.mark.parametrize(("command", "output"), [("run", "alive\n"), ("watch", "")])
def test_a_hang_up_ends_no_gateway_that_starts_but_a_command_that_somebody_watches(command: str, output: str) -> None:
    code = SHOW.replace("ARGV", repr([command, "gateway.toml"]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == output
