"""How much memory the inputs took: the peak of the whole process, C libraries included, between two looks.

Linux keeps the highest resident size of a process (VmHWM), and begins anew when told to: so every input is
seen, though the look itself is taken only now and then.
"""

from __future__ import annotations

import re
from pathlib import Path

LIMIT_BYTES = 64 << 20
"""What bad input may take at most."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Of this process, now."""
    return _read("VmRSS")


def peak_bytes() -> int:
    """Of this process, since `forget_peak`."""
    return _read("VmHWM")


def forget_peak() -> None:
    _CLEAR.write_text("5")


def _read(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found, f"{_STATUS} has no {name}"
    return int(found[1]) << 10
