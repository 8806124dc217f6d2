"""Asking the gateway that runs: how the command line finds it, by `[status] listen` of the configuration alone."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

from devices.errors import ConfigError, ForebayError
from edge.config import StatusConfig

ASK_S = 5.0
"""How long the daemon may take to answer."""


@contextlib.contextmanager
def ask(where: StatusConfig, path: str, method: str = "GET") -> Iterator[http.client.HTTPResponse]:
    """Its answer, to be read while the context lasts. Raises ForebayError when it does not run, or says no."""
    host, port = where.address
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=ASK_S)) as connection:
        try:
            connection.request(method, path)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ForebayError(
                f"the gateway does not answer at {where.listen} ({_short(error)}): is `forebay-edge run` running with "
                "this file? [status] listen says where it is to be asked"
            ) from None
        with answer:
            if answer.status != 200:
                raise ForebayError(f"the gateway says: {answer.read(1000).decode(errors='replace').strip()}")
            yield answer


def running(where: StatusConfig) -> dict[str, Any] | None:
    """The status of the gateway that runs there; None where none does."""
    with contextlib.suppress(ForebayError, OSError, ValueError), ask(where, "/status") as answer:
        status = json.loads(answer.read())
        if isinstance(status, dict) and "gateway" in status:
            return status
    return None


def must_be_free(where: StatusConfig) -> None:
    """Raises ConfigError when a gateway or another program listens there already, or nobody can."""
    host, port = where.address
    try:
        for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            socket.create_server(address[:2], family=family).close()
    except OSError as error:
        raise ConfigError(f"[status] listen: {_why_not(where, error)}") from None


def called(status: dict[str, Any]) -> str:
    """Who says this of itself."""
    pid = f" (pid {status['pid']})" if "pid" in status else ""
    return f"the gateway {status['gateway']}{pid}"


def _why_not(where: StatusConfig, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"{where.listen} cannot be had ({_short(error)}): name an address of this machine, and a port above 1023"
    status = running(where)
    if status is None:
        return f"another program listens at {where.listen} already: name another address"
    return f"{called(status)} runs already and listens at {where.listen}: end it, or give this one another address"


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
