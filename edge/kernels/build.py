"""Compiles the passes ahead of time into an extension, which needs no Numba to run.

    python -m edge.kernels.build [FOLDER]

For when a wheel is built (FOLDER is this package), or on a machine with a C compiler. The extension's name bears the
digest of the sources, so it is found by exactly these (see `edge/kernels/__init__.py`), and nothing stale is run.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from edge import kernels

log = logging.getLogger("forebay.kernels")


def build(folder: Path) -> Path:
    """Compile all passes into one shared object, and put it into the folder in one step; -> its path.

    Needs Numba in use (`kernels.backend`), a C compiler and setuptools; about 5 s.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Numba says that pycc will one day be replaced
        pycc: Any = importlib.import_module("numba.pycc")
        from edge.kernels import detect, settle, window

        folder.mkdir(parents=True, exist_ok=True)
        compiler = pycc.CC(kernels.extension_name)
        final: Path = folder / compiler.output_file
        compiler.output_dir = str(folder)
        compiler.output_file = f"building-{os.getpid()}-{final.name}"
        for function, results, arguments in (
            detect.DETECT,
            window.FOLD,
            window.SWEEP,
            window.CLOSE_ONE,
            settle.SETTLE,
        ):
            compiler.export(function.__name__, kernels.signature(results, arguments))(function)
        compiler.compile()
        os.replace(folder / compiler.output_file, final)
    for stale in folder.glob("forebay_kernels_*.so"):
        if stale != final:
            stale.unlink(missing_ok=True)
    return final


def build_in_background() -> None:
    """For the next start: compile in a child of low priority, where there is a C compiler and it is not done yet."""
    if kernels.backend == "compiled" or not (shutil.which("cc") or shutil.which("gcc")):
        return
    folder = next((f for f in kernels.cache_folders() if _is_writable(f)), None)
    if folder is None:
        return
    log.info("compiling the kernels for the next start, into %s", folder)
    command = [sys.executable, "-m", "edge.kernels.build", str(folder)]
    if nice := shutil.which("nice"):
        command = [nice, "-n", "19", *command]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=kernels.cache_folders()[0])
    chosen = parser.parse_args()
    if kernels.backend == "compiled":
        print("the kernels are compiled already, from exactly these sources")
        return
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with open(chosen.folder / "forebay_kernels.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process is compiling them")
            return
        print(build(chosen.folder))


if __name__ == "__main__":
    main()
