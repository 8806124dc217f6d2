"""The command `forebay-cloud`."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from pathlib import Path
from typing import Annotated

import prometheus_client
import structlog
import typer

from cloud.check import check as look
from cloud.config import load_config
from cloud.daemon import ends_by_signal, serve
from devices.errors import ForebayError
from devices.findings import said_once

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)


@app.callback()
def program() -> None:
    """The cloud's end of Forebay: frames from the broker into InfluxDB or SQLite."""


@app.command(epilog="Example:  forebay-cloud run /etc/forebay/ingest.toml")
def run(config: Annotated[Path, typer.Argument(help="The TOML file; docs/configuration.md has its keys.")]) -> None:
    """Ingest until SIGTERM: store what the gateways send, and send them receipts.

    Logs go to stderr as one JSON object a line. Any number of ingesters may run with one configuration.
    """
    _log_as_json()
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        asyncio.run(_run(config))
    except ForebayError as error:
        print(f"forebay-cloud: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


@app.command(epilog="Example:  forebay-cloud check /etc/forebay/ingest.toml")
def check(
    config: Annotated[Path, typer.Argument(help="The TOML file; docs/configuration.md has its keys.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long broker and sink may take to answer.")] = 5.0,
) -> None:
    """Look at everything that the configuration names, and change nothing.

    Validates the file, asks the broker whether it lets an ingester in, and the sink what it would say to a write.
    Exit code 0 only if all is well.
    """
    try:
        with said_once():
            found = asyncio.run(look(load_config(config), config, seconds))
    except ForebayError as error:
        print(f"forebay-cloud: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    print("\n".join(found.lines))
    if found.problems:
        raise typer.Exit(1)


async def _run(path: Path) -> None:
    ended, config = ends_by_signal(), load_config(path)
    # What is loaded by now stays: a full collection goes through it all, 33 ms in which no alarm passes.
    gc.collect()
    gc.freeze()
    await serve(config, ended)


def _log_as_json() -> None:
    """Our own events and those of the libraries: one JSON object a line, on stderr."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def main() -> None:
    app()
