"""`forebay-cloud check`: look at broker, sink and page as `forebay-cloud run` would find them, and change nothing.

The broker is asked under a name of its own that leaves nothing behind, and by a group of its own, for the frames of
a gateway that is nowhere: no frame of a real one is taken from an ingester. The sink is asked for what it would
say to a write.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import Final

import aiohttp

from cloud import metrics as pages
from cloud.config import Config
from cloud.metrics import IngestMetrics
from devices.errors import ConfigError, SinkError
from devices.findings import Findings
from devices.wire.probe import ask
from devices.wire.topics import UP, topic

EDGE_FRAME_BYTES: Final = 256 * 1024
"""What `[uplink] frame_bytes` of a gateway is, unless its file says otherwise."""


async def check(config: Config, path: Path, wait_s: float) -> Findings:
    """Ask all of them at once, for at most `wait_s` seconds each."""
    found = Findings()
    found.say(f"ingester: {path} is in order")
    for part in await asyncio.gather(
        _ask_broker(config, wait_s), _ask_sink(config, wait_s), _look_at_page(config, wait_s)
    ):
        found.add(part)
    found.close()
    return found


async def _ask_broker(config: Config, wait_s: float) -> Findings:
    found = Findings()
    found.say(f"broker {config.broker.url}")
    nobody = f"forebay-check-{secrets.token_hex(6)}"
    filters = [f"$share/{nobody}/{topic(nobody, leaf)}" for leaf in UP]
    try:
        asked = await ask(config.session, wait_s, filters, topic(nobody, "receipt"))
    except ConfigError as error:
        found.problem(str(error))
        return found
    if asked.error:
        found.problem(asked.error)
    if not asked.connected:
        return found
    found.say(f"  connected; the broker takes packets {asked.takes}, and we take frames of {config.limits.frame_size}")
    if config.limits.frame_size < EDGE_FRAME_BYTES:
        found.problem(
            f"a gateway sends frames of up to {EDGE_FRAME_BYTES} bytes, and the broker drops what we do not take: "
            "raise [limits] frame_size, or lower [uplink] frame_bytes of each gateway"
        )
    return found


async def _ask_sink(config: Config, wait_s: float) -> Findings:
    found = Findings()
    found.say(f"sink {config.sink_url}")
    try:
        async with asyncio.timeout(wait_s):
            found.say(f"  {await config.sink.check()}")
    except (ConfigError, SinkError) as error:
        found.problem(str(error))
    except TimeoutError:
        found.problem(f"no answer within {wait_s:g} s: check `url` in [sink], and the network")
    finally:
        await config.sink.close()
    return found


async def _look_at_page(config: Config, wait_s: float) -> Findings:
    """Whether `[metrics] listen` can be had, or an ingester has it already."""
    found, listen = Findings(), config.metrics.listen
    if not listen:
        return found
    found.say(f"metrics http://{listen}/metrics")
    try:
        page, _ = await pages.serve(IngestMetrics(), listen, lambda: "")
        await page.cleanup()
    except ConfigError as error:
        said = await _healthz(listen, wait_s)
        if said is None:
            found.problem(str(error))
        else:
            found.say(f"  an ingester is running there already, and says: {said}")
    return found


async def _healthz(listen: str, wait_s: float) -> str | None:
    """What an ingester there says of itself; None where there is none."""
    limit = aiohttp.ClientTimeout(total=wait_s)
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, UnicodeError):
        async with aiohttp.ClientSession(timeout=limit) as client:
            async with client.get(f"http://{listen}/metrics") as answer:
                if "forebay_ingest_" not in await answer.text():
                    return None
            async with client.get(f"http://{listen}/healthz") as answer:
                return await answer.text()
    return None
