"""InfluxDB 1.8 and 2.x through influxdb-client, one attempt a write.

Both are written through `/api/v2/write`: on 1.8 the bucket is the name of a database and the token is
`user:password`. Only the status of an answer decides what it means:

    204                                    stored
    400, 406, 422 in InfluxDB's own form   BadLines
    401, 403, and 404 for a bucket         SinkRefused
    413                                    BatchTooLarge
    408, 429, 5xx, no answer, a time-out   SinkBusy
    all else                               SinkRefused

What stands in its place answers too: a login page with a redirect or 200, a server that now wants TLS with
400. To believe that would be to forget what was never stored, or never looked at.

Its text is never trusted: "partial write" may have stored nothing. The library's own batching and
retries are not used: they lose points at exit and at every 4xx. Its asyncio client costs less than its
blocking one on threads: the figures are in docs/decisions/0005-sinks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService

from devices.errors import BadLines, BatchTooLarge, ConfigError, SinkBusy, SinkError, SinkRefused
from devices.quantities import Duration
from devices.secrets import Secret, read_secret
from devices.wire.dial import certificate_advice, tls_context

_GZIP_LEVEL: Final = 1
"""Shrinks line protocol 6.8 times for 0.5 us a line; higher levels cost more than the network does."""
_STORED: Final = 204
_ANSWER_CHARS: Final = 300
"""How much of a server's answer goes into an error."""


class InfluxOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of `[sink]` for InfluxDB.

    With a token it is a 2.x server: `org` and `bucket` name where the points go. Without one it is 1.8:
    `database`, which is made when it is missing, and `user` with a password where the server wants them.
    """

    org: str = ""
    """2.x: the organization that has the bucket."""
    bucket: str = ""
    """2.x: the bucket that the points go into; it must be there."""
    token_file: str = ""
    token_env: str = ""
    database: str = ""
    """1.8: the database that the points go into."""
    user: str = ""
    password_file: str = ""
    password_env: str = ""
    timeout: Duration = Duration.parse("10 s")
    """How long a write may take; then it is tried again, which changes nothing should it have succeeded."""
    ca_file: str = ""
    """Certificates to trust instead of the system's."""
    cert_file: str = ""
    """Our own certificate, where the server asks for one."""
    key_file: str = ""

    def __post_init__(self) -> None:
        if bool(self.token_file or self.token_env):
            if not self.org or not self.bucket or self.database:
                raise ValueError("with a token, `org` and `bucket` say where the points go, and not `database`")
        elif not self.database or self.bucket or self.org:
            raise ValueError("without a token, `database` says where the points go, and not `org` and `bucket`")
        if self.timeout.ns == 0:
            raise ValueError("`timeout` must be longer than nothing")


class NotAllowed(SinkRefused):
    """The server knows who we are, and does not let us do this (403)."""


class InfluxSink:
    """See cloud.sinks.Sink."""

    Options = InfluxOptions

    def __init__(self, url: str, options: InfluxOptions) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.username or parts.password or parts.query:
            raise ConfigError(
                f"the url of an InfluxDB sink is http://HOST:PORT without user, password or query, not {_safe(url)!r}"
            )
        self._url = url.rstrip("/")
        self._options = options
        self._bucket = options.bucket or options.database
        self._org = options.org or "-"
        self._token = _token(options)
        self._gzip = not _is_this_host(parts.hostname)
        self._tls = parts.scheme == "https"
        self._client: Any = None
        self._writes: Any = None

    async def open(self) -> None:
        """Make the database (1.8) or see that the server answers (2.x). ConfigError: its certificates are no use."""
        self._connect()
        if not self._options.database:
            await self._ask("GET", "/ping")
            return
        # A user who may only write cannot make a database; whether it is there, the first write says.
        with contextlib.suppress(NotAllowed):
            await self._make_database()

    async def check(self) -> str:
        """A write of nothing: the server looks for the bucket and at our rights all the same, and stores nothing."""
        self._connect()
        place = f"database {self._bucket!r}" if self._options.database else f"bucket {self._bucket!r} of {self._org!r}"
        try:
            await self._post(b"")
        except ApiException as error:
            if error.status == 404 and self._options.database:
                return f"the server answers, and has no {place} yet: the ingester makes it, if this user may"
            raise self._meaning(error.status or 0, error.body, error.headers) from error
        return f"the server answers, and lets us write to the {place}"

    def _connect(self) -> None:
        """Make the client; it connects when it is used."""
        if self._client is None:
            self._client = InfluxDBClientAsync(
                self._url,
                token=self._token.reveal(),
                timeout=self._options.timeout.ns // 1_000_000,
                # The ingester bounds its own connections; a second bound here would only hide them in a queue.
                connection_pool_maxsize=0,
                allow_redirects=False,
                ssl_context=self._tls_context() if self._tls else None,
            )
            self._writes = WriteService(self._client.api_client)  # type: ignore[no-untyped-call]

    async def write(self, lines: bytes) -> None:
        """Store newline-separated line protocol; see the module's table for what is raised."""
        body, encoding = lines, {}
        if self._gzip:
            body = await asyncio.to_thread(gzip.compress, lines, _GZIP_LEVEL)
            encoding = {"content_encoding": "gzip"}
        try:
            await self._post(body, **encoding)
        except ApiException as error:
            if error.status == 404 and self._options.database:
                await self._make_database()
                raise SinkBusy(f"the database {self._bucket!r} was missing on {self._url} and has been made") from error
            raise self._meaning(error.status or 0, error.body, error.headers) from error

    async def _post(self, body: bytes, **encoding: str) -> None:
        """One attempt. Raises ApiException for an answer that says no, SinkError for anything else but a yes."""
        try:
            _, status, headers = await self._writes.post_write_async(
                org=self._org,
                bucket=self._bucket,
                body=body,
                precision="ns",
                _return_http_data_only=False,
                **encoding,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._no_answer(error) from error
        if status != _STORED:
            raise self._meaning(status, "", headers)

    def _tls_context(self) -> ssl.SSLContext:
        options = self._options
        return tls_context(options.ca_file, options.cert_file, options.key_file)

    def _read_secret_again(self) -> None:
        """It was refused: should its file have been put right meanwhile, the next attempt uses that."""
        with contextlib.suppress(ConfigError):
            self._token = _token(self._options)
            self._client.api_client.default_headers["Authorization"] = f"Token {self._token.reveal()}"

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = self._writes = None

    async def _make_database(self) -> None:
        """1.8 has no API of version 2 for this: one InfluxQL statement, which changes nothing when it is there."""
        name = self._bucket.replace("\\", "\\\\").replace('"', '\\"')
        await self._ask("POST", "/query", {"q": f'CREATE DATABASE "{name}"'})

    async def _ask(self, method: str, path: str, form: dict[str, str] | None = None) -> None:
        token = self._token.reveal()
        headers = {"Authorization": f"Token {token}"} if token else {}
        session: aiohttp.ClientSession = self._client.api_client.rest_client.pool_manager
        try:
            async with session.request(
                method, self._url + path, data=form, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise self._meaning(answer.status, await answer.read(), answer.headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._no_answer(error) from error

    def _meaning(self, status: int, body: object, headers: Any) -> SinkError:
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
        said = f"{self._url} answered {status}: {_one_line(text)}"
        if status in (400, 406, 422) and (own := _message_of(text)):
            return BadLines(_one_line(own))
        if status in (401, 403):
            self._read_secret_again()
            kind = SinkRefused if status == 401 else NotAllowed
            return kind(f"{said}; check the token or the user and password in [sink], and what they may write")
        if status == 404:
            return SinkRefused(f"{said}; check `url`, `org` and `bucket` in [sink]")
        if status == 413:
            return BatchTooLarge(said)
        if status in (408, 429) or status >= 500:
            return SinkBusy(said, _retry_after_s(headers), maybe_the_body=status == 500)
        return SinkRefused(f"{said}; this is no InfluxDB, or one that Forebay does not know: check `url` in [sink]")

    def _no_answer(self, error: Exception) -> SinkError:
        if isinstance(error, TimeoutError):
            return SinkBusy(f"{self._url} did not answer within {self._options.timeout}")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = error.certificate_error
            if isinstance(why, ssl.SSLCertVerificationError):
                said = f"the certificate of {self._url} is not trusted ({why.verify_message})"
                return SinkRefused(f"{said}: {certificate_advice(why)}")
        return SinkBusy(
            f"no connection to {self._url} ({error or type(error).__name__}): does InfluxDB run there? "
            "Check `url` in [sink]; it is tried again"
        )


def _token(options: InfluxOptions) -> Secret:
    """What goes into the header; 1.8 takes user and password in the place of a token. Raises ConfigError."""
    token = read_secret(options.token_file, options.token_env, key="token")
    if token is not None:
        return token
    password = read_secret(options.password_file, options.password_env)
    return Secret(f"{options.user}:{password.reveal() if password else ''}" if options.user else "")


def _retry_after_s(headers: Any) -> float | None:
    """Of an answer's headers; None when there is none, or when it is a date."""
    text = str((headers or {}).get("Retry-After", ""))
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _message_of(text: str) -> str:
    """InfluxDB's own sentence from its JSON answer: `error` on 1.8, `message` on 2.x; "" if it is not of that form."""
    try:
        answer = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        return ""
    return str(answer.get("error") or answer.get("message") or "")


def _one_line(text: str) -> str:
    """What a server said, bounded and without control characters: it goes into logs and receipts."""
    clean = "".join(c if c.isprintable() else " " for c in text[:_ANSWER_CHARS])
    return clean + ("..." if len(text) > _ANSWER_CHARS else "")


def _safe(url: str) -> str:
    """The URL without what stands before an @: it may be a password."""
    return url.split("@")[-1]


def _is_this_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
