"""Passwords and tokens: read from a file or the environment, and never shown.

A `Secret` shows stars wherever text is made of it: `str`, `repr`, an f-string, a traceback's locals, a
log record, JSON. Only `reveal()` gives it away, and only the code that logs in calls that.

A file that anyone but its owner and group may write is refused: whoever can write it chooses the
password. One that others may read is used, with a warning: container engines mount their secrets with
mode 0444, so refusing would only teach people to put the password into the environment.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import Final, NoReturn

from devices.errors import ConfigError

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 64 * 1024
"""More than any password or token; a mistyped path to a log file is noticed instead of sent."""


class Secret:
    """A text that is never shown. Two secrets with one text are equal."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, to log in with."""
        return self._text

    def __str__(self) -> str:
        return "********"

    def __repr__(self) -> str:
        return "Secret(********)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


def read_secret(file: str = "", env: str = "", *, key: str = "password") -> Secret | None:
    """The secret in `file`, or in the environment variable `env`; None when neither is named.

    `key` is the key of the configuration (`password` for `password_file` and `password_env`), for the
    errors. One line end at the end of a file is not part of the secret. Raises ConfigError.
    """
    if file and env:
        raise ConfigError(f"both {key}_file and {key}_env are set: keep one of them")
    if file:
        return Secret(_from_file(file, f"{key}_file"))
    if env:
        text = os.environ.get(env, "")
        if not text:
            raise ConfigError(
                f"the environment variable {env} that {key}_env names is empty or not set: set it where this is started"
            )
        return Secret(text)
    return None


def _from_file(path: str, key: str) -> str:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path} that {key} names: {error.strerror}; {_advice(error, key)}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise ConfigError(f"{path} that {key} names is not a file")
    if mode & stat.S_IWOTH:
        raise ConfigError(f"everybody may write {path} that {key} names: chmod 600 {path}")
    if mode & stat.S_IROTH and stat.S_ISREG(mode):
        log.warning("everybody on this machine may read %s that %s names: chmod 600 %s", path, key, path)
    text = _text(content)
    if text is None:
        raise ConfigError(f"{path} that {key} names is no line of UTF-8 text of at most {_MAX_BYTES} bytes")
    if not text:
        raise ConfigError(f"{path} that {key} names is empty")
    return text


def _advice(error: OSError, key: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"write the {key.removesuffix('_file')} there in one line, and chmod 600 it"
    return "let this user read it, and nobody else (chown, chmod 600)"


def _text(content: bytes) -> str | None:
    """None for what cannot be a secret; without an exception, since one would carry the content along."""
    if len(content) > _MAX_BYTES:
        return None
    text = content.decode("utf-8", errors="replace").removesuffix("\n").removesuffix("\r")
    return None if "\ufffd" in text or "\n" in text else text
