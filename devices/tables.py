"""TOML tables into typed structs, with errors that name the file and the path of the key.

Each table is converted by itself, since msgspec does not name the keys of a mapping in its paths:

    unknown field `topcs`: gateway.toml [source.plant]; did you mean `topics`?
    expected `int`, got `str`: gateway.toml [source.pump1] baud_rate
"""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from devices.errors import ForebayError
from devices.quantities import Duration, Rate, Size, from_toml

T = TypeVar("T")
Table = dict[str, Any]

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_MAX_FILE_BYTES: Final = 4 * 2**20


def read_toml(path: Path, error: type[ForebayError]) -> Table:
    """The file's table. Raises `error` with what to do when it is not there, or is not TOML."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as why:
        raise error(f"cannot read {path}: {why.strerror}") from why
    if len(content) > _MAX_FILE_BYTES:
        raise error(f"{path} is larger than {Size(_MAX_FILE_BYTES)}: it is hardly a configuration")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as why:
        hint = "; is a text without its quotes there?" if str(why).startswith("Invalid value") else ""
        raise error(f"{path} is not TOML: {why}{hint}") from why


def whole_paths(table: Any, file: Path) -> Any:
    """A table of the file, its paths made whole: relative ones begin at the file's folder, wherever we were started.

    Paths are the texts of `path` and of the keys that end with `_file`; "" stays "". What is no table stays as it is.
    """
    if not isinstance(table, dict):
        return table
    folder = file.absolute().parent
    return {key: str(folder / value) if _is_path(key, value) else value for key, value in table.items()}


def _is_path(key: str, value: object) -> bool:
    return (key == "path" or key.endswith("_file")) and isinstance(value, str) and value != ""


def convert(table: object, kind: type[T], where: str, error: type[ForebayError]) -> T:
    """`table` as a `kind`. `where` is the file and the table's path: "gateway.toml [source.plant]".

    A date may stand without quotes. Raises `error` for unknown or missing keys, wrong types, and whatever
    `__post_init__` refuses.
    """
    if isinstance(table, dict):
        table = {key: value.isoformat() if type(value) is date else value for key, value in table.items()}
    try:
        return msgspec.convert(table, kind, dec_hook=from_toml)
    except msgspec.ValidationError as why:
        raise error(_sentence(str(why), kind, where)) from why
    except error as why:  # of a `__post_init__` that shares its rule with other tables
        raise error(f"{why}: {where}") from why


def builtins(value: object) -> Any:
    """A struct as plain dicts, lists, numbers and text; quantities in the form that reads back."""
    return msgspec.to_builtins(value, enc_hook=_plain)


def _plain(value: object) -> str:
    if isinstance(value, Duration | Size | Rate):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not part of a configuration")


def key_path(*keys: str) -> str:
    """The path of a table as TOML writes it: `[source."pump 1"]`."""
    return "[" + ".".join(k if re.fullmatch(r"[A-Za-z0-9_-]+", k) else f'"{k}"' for k in keys) + "]"


def _sentence(message: str, kind: type, where: str) -> str:
    message, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    place = f"{where} {path}" if path else where
    if match := _UNKNOWN_FIELD.fullmatch(message):
        known = [] if path else list(getattr(kind, "__struct_encode_fields__", ()))
        return f"unknown field `{match[1]}`: {place}{did_you_mean(match[1], known)}"
    if match := _MISSING_FIELD.fullmatch(message):
        return f"missing field `{match[1]}`: {place}"
    hint = '; a list stands in brackets, such as ["one", "two"]' if message.startswith("Expected `array`") else ""
    return f"{message[:1].lower()}{message[1:]}: {place}{hint}"


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error's sentence: the nearest of the known words, or all of them, or nothing."""
    import difflib  # in a process that runs nobody has mistyped

    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known are {', '.join(sorted(known))}" if known else ""
