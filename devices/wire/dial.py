"""From a broker's address to a connected socket, TLS included, without blocking the event loop.

Every failure is a sentence that says what to do: HostUnknown, Unreachable, LoginRefused (our certificate),
ConfigError (an address or a certificate file that cannot be used).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from devices.errors import ConfigError, ForebayError, HostUnknown, LoginRefused, Unreachable


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_broker(url: str) -> BrokerAddress:
    """`mqtt://HOST[:1883]` or `mqtts://HOST[:8883]`. Raises ConfigError, which never shows what may be a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if "@" in url:
        raise ConfigError("broker: a user and a password do not belong into the address: use user, password_file")
    if not host or parts.scheme not in ("mqtt", "mqtts") or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"broker: {url!r} is not of the form mqtt://HOST:PORT or mqtts://HOST:PORT")
    tls = parts.scheme == "mqtts"
    return BrokerAddress(host, port or (8883 if tls else 1883), tls)


def check_access(broker: str, user: str, password: str, ca_file: str, cert_file: str, key_file: str) -> None:
    """Raises ConfigError for keys that can never let anybody in. `password`: where it is to be found, "" nowhere."""
    tls = parse_broker(broker).tls
    if password and not user:
        raise ConfigError("user: it is missing, and a password without a user is of no use in MQTT")
    if (ca_file or cert_file) and not tls:
        raise ConfigError("with ca_file or cert_file the broker's address must begin with mqtts://")
    if key_file and not cert_file:
        raise ConfigError("cert_file: there is a key_file without it")


def tls_context(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """Verifies the broker against `ca_file` ("": the system's), shows `cert_file` ("": none). Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file: {ca_file} cannot be used ({_short(error)}): it must hold PEM") from error
    if cert_file:
        try:
            # A password that is asked for on the terminal would stop a daemon: an empty one fails instead.
            context.load_cert_chain(cert_file, key_file or None, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cert_file, key_file: {cert_file} and {key_file or cert_file} cannot be used ({_short(error)}): they "
                "must hold a PEM certificate and its key without a password, readable by this user"
            ) from error
    return context


async def dial(broker: BrokerAddress, context: ssl.SSLContext | None, timeout_s: float) -> socket.socket:
    """A connected, non-blocking socket to the first of the host's addresses that answers.

    `timeout_s` bounds the name's resolution and each address' connection and handshake.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise HostUnknown(f"the name {broker.host} was not resolved within {timeout_s:g} s: does DNS work?") from None
    except (OSError, UnicodeError) as error:
        raise HostUnknown(
            f"the host {broker.host} is not known ({_short(error)}): check its spelling, and that DNS works here"
        ) from error
    failure: ForebayError = HostUnknown(f"the host {broker.host} has no address")
    for family, _, protocol, _, address in found:
        try:
            async with asyncio.timeout(timeout_s):
                return await _connect(
                    loop, socket.socket(family, socket.SOCK_STREAM, protocol), address, broker, context
                )
        except TimeoutError:
            failure = Unreachable(
                f"{broker} does not answer within {timeout_s:g} s: check the address, the network and the firewalls"
            )
        except ForebayError as error:
            failure = error
        except ConnectionRefusedError:
            failure = Unreachable(f"{broker} refuses the connection: does the broker run, and listen on that port?")
        except ssl.SSLError as error:
            failure = tls_failure(broker, error)
        except OSError as error:
            failure = Unreachable(f"{broker} cannot be reached ({_short(error)}): check the address and the network")
    raise failure


async def _connect(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    address: object,
    broker: BrokerAddress,
    context: ssl.SSLContext | None,
) -> socket.socket:
    try:
        sock.setblocking(False)
        # Acknowledgements are small and written once: waiting to join them would only delay them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, address)  # type: ignore[arg-type]
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=broker.host, do_handshake_on_connect=False)
            try:
                await _handshake(loop, sock)
            except ConnectionError:
                raise _no_tls(broker) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _handshake(loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> None:
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await _ready(loop, sock, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(loop, sock, loop.add_writer, loop.remove_writer)


async def _ready(
    loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket, add: Callable[..., None], remove: Callable[..., bool]
) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(sock, wake)
    try:
        await ready
    finally:
        remove(sock)


def tls_failure(broker: BrokerAddress, error: ssl.SSLError) -> ForebayError:
    """What a failed handshake, or an alert of the broker's, means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(
            f"the certificate of {broker} is not trusted ({error.verify_message}): {certificate_advice(error)}"
        )
    reason = error.reason or ""
    if "ALERT" in reason:
        return LoginRefused(
            f"{broker} refuses our certificate ({reason}): check cert_file, key_file, and the CAs that it trusts"
        )
    if reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"):
        return _no_tls(broker)
    return Unreachable(f"TLS with {broker} fails ({reason or _short(error)})")


def certificate_advice(error: ssl.SSLCertVerificationError) -> str:
    """What to do about a server's certificate, by the codes of X509_verify_cert(3)."""
    match error.verify_code:
        case 9 | 10:  # not yet valid, expired
            return "it needs a new one, or this machine's clock is wrong"
        case 62 | 64:  # host name, IP address
            return "name the server as its certificate does, or give it one with this name"
        case _:
            return "name the CA that signed it in ca_file"


def _no_tls(broker: BrokerAddress) -> Unreachable:
    return Unreachable(f"{broker} does not speak TLS: use its TLS port (8883 as a rule), or mqtt:// without TLS")


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
