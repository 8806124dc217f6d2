"""Compiles the passes ahead of time into an extension, which needs no Numba to run.

    python -m edge.kernels.build [FOLDER]

For when a wheel is built (FOLDER is this package), or on a machine with a C compiler. The extension's name bears the
digest of the sources, so it is found by exactly these (see `edge/kernels/__init__.py`), and nothing stale is run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import warnings
from pathlib import Path
from typing import Any

from edge import kernels


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
    return final


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=kernels.cache_folders()[0])
    chosen = parser.parse_args()
    if kernels.backend == "compiled":
        print("the kernels are compiled already, from exactly these sources")
    else:
        print(build(chosen.folder))


if __name__ == "__main__":
    main()
