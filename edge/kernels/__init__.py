"""The compiled inner loops, the role of a filter, and the one place that chooses how they are compiled.

A filter is a detector over one series. It is found by name through the entry-point group
`forebay.filters` and is a class with these attributes (`Filter` below):

    name       the name that profiles and alarms use
    Options    frozen msgspec Struct: its keys in the profile, with defaults; it raises ValueError for nonsense
    state      np.dtype of one record: all that it remembers of one series; starts as zero bytes
    params     np.dtype of one record: what `params_of(options, spec)` returns as a tuple
    memoryless True: `step` never touches its state, and is asked about late samples too
    step       @numba.njit scalar function  step(state, params, time_ns, value) -> (score, low, high)

`step` is called once a sample, in order of arrival, with a finite value; unless the filter is
memoryless, only with a time later than the one before. So NaN, infinities, late samples and equal times
leave every state as it was. score >= 1 is abnormal; low and high are the expected band (NaN: none).
The four filters of Forebay run fused in one pass (`detect`), any other in a pass made from its own
step (`generic`); docs/decisions/0003-kernels.md has the measurements.

The passes are plain functions over structured arrays, of one record a series. They allocate nothing, raise
nothing, and stop when their output buffer is nearly full: the caller drains it and calls again. How the
stream is cut into batches changes nothing.

How they are compiled (`backend`): "compiled", an extension made ahead of time from exactly these
sources (`build.py`), or else "numba", compiled in this process and cached on disk. Both are found by a digest
of the sources, so that nothing stale is ever run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import msgspec
import numpy as np

from devices.model import SeriesSpec

F = TypeVar("F", bound=Callable[..., Any])

HERE = Path(__file__).parent
SCORE_MAX = 1e6
"""Scores are clipped here: the tail says nothing more, and no infinity travels."""


class Filter(Protocol):
    """See the module's docstring."""

    name: ClassVar[str]
    Options: ClassVar[type[msgspec.Struct]]
    state: ClassVar[np.dtype[Any]]
    params: ClassVar[np.dtype[Any]]
    memoryless: ClassVar[bool]
    step: ClassVar[Callable[..., Any]]

    @staticmethod
    def params_of(options: Any, spec: SeriesSpec) -> tuple[Any, ...]: ...


def _digest() -> str:
    """Of the sources of every kernel, for this kind of Python: 16 hex digits."""
    sources = hashlib.sha256((sys.implementation.cache_tag or sys.version).encode())
    for path in sorted(HERE.glob("*.py")):
        sources.update(path.read_bytes())
    return sources.hexdigest()[:16]


digest = _digest()


def cache_folders() -> list[Path]:
    """Where compiled code may lie, best first: beside the sources, then in the user's own cache."""
    own = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [HERE / "__pycache__", Path(own) / "forebay" / "kernels"]


extension_name = f"forebay_kernels_{digest}"


def _listed(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder; none where it is not there, or is not for this user."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _load_extension() -> Any:
    """The extension that was compiled ahead of time from exactly these sources, or None."""
    name = extension_name
    for folder in (HERE, *cache_folders()):
        for path in _listed(folder, f"{name}*.so"):
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None:
                continue
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


_extension = None if os.environ.get("FOREBAY_KERNELS") == "numba" else _load_extension()

backend = "numba" if _extension is None else "compiled"
"""Which of the two is in use; `status` shows it. FOREBAY_KERNELS=numba in the environment passes over the extension."""


def jit(function: F) -> F:
    """Compile a step or a helper for use inside a pass. With the extension it stays plain Python."""
    return function if _extension is not None else cast(F, dispatcher(function))


def dispatcher(function: Any) -> Any:
    """A step or a helper as Numba needs it inside a pass that is compiled in this process."""
    import numba

    return function if hasattr(function, "py_func") else numba.njit(error_model="numpy")(function)


def signature(results: int, arguments: Sequence[Any]) -> Any:
    """Numba's for a pass with so many int64 results. An argument is `int` (an int64), a dtype (a C-contiguous
    array of it with one axis), or (dtype, number of axes)."""
    from numba import from_dtype, int64, types

    def typed(argument: Any) -> Any:
        if argument is int:
            return int64
        dtype, axes = argument if isinstance(argument, tuple) else (argument, 1)
        return types.Array(from_dtype(np.dtype(dtype)), axes, "C")

    result = int64 if results == 1 else types.UniTuple(int64, results)  # type: ignore[no-untyped-call]
    return result(*(typed(argument) for argument in arguments))


def entry(function: F, results: int, arguments: Sequence[Any]) -> F:
    """The compiled form of a pass, to be called from Python; results and arguments as for `signature`.

    What is returned skips Numba's dispatcher, which spends as long on looking up the types as the rest of a call takes
    (0.4 us), and with it every check of them: callers hand over C-contiguous arrays of exactly the dtypes named.
    """
    if _extension is not None:
        return cast(F, getattr(_extension, function.__name__))
    return cast(F, _entry_point(_compile_cached(function, signature(results, arguments))))


def entry_uncached(function: F, results: int, arguments: Sequence[Any]) -> F:
    """As `entry`, for a pass around a filter that is not one of ours: compiled in this process each time."""
    import numba

    return cast(F, _entry_point(numba.njit(signature(results, arguments), error_model="numpy")(function)))


def _compile_cached(function: Any, numba_signature: Any) -> Any:
    """Compile, or load from a folder that bears the digest: Numba itself would only look at one file's time."""
    from numba import config, njit

    settings: Any = config
    before = settings.CACHE_DIR
    try:
        for folder in cache_folders():
            settings.CACHE_DIR = str(folder / f"numba-{digest}")
            try:
                return njit(numba_signature, error_model="numpy", cache=True)(function)
            except (OSError, RuntimeError):  # not writable, nor any other place that Numba knows
                continue
    finally:
        settings.CACHE_DIR = before
    return njit(numba_signature, error_model="numpy")(function)


def _entry_point(compiled: Any) -> Any:
    return compiled.overloads[compiled.signatures[0]].entry_point
