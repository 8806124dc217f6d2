"""`forebay-sim run | demo | chaos | soak | score`."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console

from devices.errors import ForebayError
from simulators.chaos.plan import KINDS
from simulators.chaos.run import Chaos, sentences
from simulators.demo import Demo, closing_report
from simulators.faults import read_truth
from simulators.fleet import Fleet
from simulators.live import Display
from simulators.parts import fetch
from simulators.records import RecordReader
from simulators.scenario import load_scenario
from simulators.score import Report, score
from simulators.servers import InfluxVersion
from simulators.soak import Soak, soak_sentences
from simulators.stored import InfluxStored, SqliteStored, StoredSink

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Simulated devices, and the account of what became of what they sent.",
)

Seed = Annotated[int, typer.Option(help="The same seed gives the same readings and faults.")]
T = TypeVar("T")
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write the report there, as JSON.")]
Folder = Annotated[
    Path | None, typer.Option(help="Configurations, logs and data go there; without it a new temporary folder.")
]
Influxdb = Annotated[str, typer.Option(help="Version of the InfluxDB that is started: 1.8 or 2.7.")]


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="Name of a scenario that is shipped (`demo`), or its file.")],
    folder: Annotated[Path, typer.Option(help="Record, truth and the links of serial ports go there.")],
    broker: Annotated[str, typer.Option(help="URL of the sensors' broker.")] = "mqtt://127.0.0.1:1883",
    seed: Seed = 1,
    seconds: Annotated[float | None, typer.Option(help="Stop after so many seconds; without it by Ctrl-C.")] = None,
    wait_for: Annotated[
        str, typer.Option(help="Send nothing before this URL answers 200, such as the edge's /readyz.")
    ] = "",
) -> None:
    """Run simulated devices until Ctrl-C, and record what they really send.

    Example: forebay-sim run demo --folder /tmp/plant --broker mqtt://localhost:1883 --seconds 60
    """
    stop = _stopped_by_signals()
    fleet = _or_say_why(lambda: Fleet(load_scenario(scenario), seed, folder, broker))
    try:
        while wait_for and not stop.is_set() and fetch(wait_for) is None:
            stop.wait(0.05)
        fleet.run(stop, seconds if seconds is not None else float("inf"))
        missing = fleet.unacknowledged
    finally:
        fleet.close()
    typer.echo(f"{fleet.sent} messages sent; the record is in {folder}")
    if missing:
        _fail(f"{missing} of them were not acknowledged by {broker}: does that broker run, and take them?")


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds; without it by Ctrl-C.")] = None,
    sink: Annotated[
        str,
        typer.Option(
            envvar="FOREBAY_INFLUXDB_URL",
            help="sqlite, influxdb1, influxdb2, or the URL of a running InfluxDB: http://HOST:8086/?database=NAME "
            "(1.8) or http://HOST:8086/?org=ORG&bucket=BUCKET with the token in FOREBAY_INFLUXDB_TOKEN (2.x).",
        ),
    ] = "sqlite",
    report: ReportFile = None,
    seed: Seed = 1,
    folder: Folder = None,
) -> None:
    """Run the whole path on this machine: devices, brokers, edge, ingester, sink; and give the account.

    Example: forebay-sim demo --seconds 40 --sink influxdb1 --report report.json
    """
    stop = _stopped_by_signals()
    console = Console()
    place = _new_folder(folder, "demo")
    with Display(console) as display:
        run = Demo(place, sink, seed, seconds, display, stop)
        account = _or_say_why(run.run)
    for line in closing_report(account, run.first_point_s):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _finish(account, report)


@app.command()
def chaos(
    faults: Annotated[int, typer.Argument(min=0, help="How many faults are drawn: about one every 2.5 s.")],
    seed: Seed = 1,
    report: ReportFile = None,
    influxdb: Influxdb = "1.8",
    only: Annotated[
        str, typer.Option(help=f"Only these kinds of fault, joined by commas: {', '.join(k.name for k in KINDS)}.")
    ] = "",
    without: Annotated[str, typer.Option(help="None of these kinds of fault.")] = "",
    folder: Folder = None,
) -> None:
    """Run all of Forebay under load while faults happen at random, and give the account; 1 if it does not hold.

    Example: forebay-sim chaos 100 --seed 7 --report chaos.json
    """
    selected, excluded, version = _kinds(only), _kinds(without), _version(influxdb)
    place, stop = _new_folder(folder, "chaos"), _stopped_by_signals()
    run = Chaos(place, faults, seed, version, selected, excluded, typer.echo, stop)
    account = _or_say_why(run.run)
    if not account.holds:
        typer.echo("\nwhat happened, by the seconds of the run:", err=True)
        typer.echo("\n".join([*run.log, *map(repr, account.troubled)]), err=True)
    for sentence in sentences(account):
        typer.echo(sentence)
    typer.echo(f"logs and records are in {place}")
    _write(account, report)
    if not account.holds:
        raise typer.Exit(1)


@app.command()
def soak(
    minutes: Annotated[float, typer.Argument(min=0.1, help="How long it runs.")],
    seed: Seed = 1,
    report: ReportFile = None,
    influxdb: Influxdb = "1.8",
    folder: Folder = None,
) -> None:
    """Run all of Forebay under load for long, a fault now and then; 1 if the account does not hold or a process grows.

    Example: forebay-sim soak 480 --seed 7 --report soak.json
    """
    version = _version(influxdb)
    place, stop = _new_folder(folder, "soak"), _stopped_by_signals()
    run = Soak(place, 60 * minutes, seed, version, typer.echo, stop)
    account = _or_say_why(run.run)
    for sentence in soak_sentences(account):
        typer.echo(sentence)
    typer.echo(f"logs and records are in {place}")
    _write(account, report)
    if not account.holds:
        typer.echo("\n".join(["what happened, by the seconds of the run:", *run.log]), err=True)
        raise typer.Exit(1)


@app.command("score")
def score_command(
    record: Annotated[Path, typer.Argument(help="Folder that `forebay-sim run` wrote its record to.")],
    gateway: Annotated[str, typer.Option(help="Name of the gateway that read the devices.")],
    sink: Annotated[str, typer.Option(help="File of an SQLite sink, or the URL of an InfluxDB.")],
    database: Annotated[str, typer.Option(help="Database, or bucket of InfluxDB 2.x.")] = "forebay",
    report: ReportFile = None,
) -> None:
    """Hold a record against what a sink holds. The token of an InfluxDB is read from FOREBAY_INFLUXDB_TOKEN.

    Example: forebay-sim score /tmp/plant --gateway pump-station-7 --sink http://localhost:8086
    """
    stored: StoredSink
    if sink.startswith(("http://", "https://")):
        stored = InfluxStored(sink, database, os.environ.get("FOREBAY_INFLUXDB_TOKEN", ""), gateway)
    else:
        stored = SqliteStored(Path(sink), gateway)
    if not RecordReader(record).is_ready():
        _fail(f"{record} holds no record: name the --folder of a `forebay-sim run`")
    account = _or_say_why(lambda: score(RecordReader(record).by_series(), read_truth(record / "truth.jsonl"), stored))
    account.sink = sink
    typer.echo(msgspec.json.format(msgspec.json.encode(account)).decode())
    _finish(account, report)


def _version(text: str) -> InfluxVersion:
    versions: dict[str, InfluxVersion] = {"1.8": "1.8", "2.7": "2.7"}
    if text not in versions:
        _fail(f"InfluxDB {text} cannot be started: choose 1.8 or 2.7")
    return versions[text]


def _kinds(words: str) -> list[str]:
    """Names of kinds of fault, joined by commas."""
    kinds = [kind for kind in words.split(",") if kind]
    unknown = set(kinds) - {kind.name for kind in KINDS}
    if unknown:
        _fail(f"there is no kind of fault {', '.join(sorted(unknown))}")
    return kinds


def _new_folder(folder: Path | None, name: str) -> Path:
    """The folder of a run: the one that was named, or a temporary one."""
    place = folder or Path(tempfile.mkdtemp(prefix=f"forebay-{name}-"))
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        _fail(f"{place} is not empty: name a new folder")
    return place


def _write(account: msgspec.Struct, report: Path | None) -> None:
    if report is not None:
        report.write_bytes(msgspec.json.format(msgspec.json.encode(account)) + b"\n")


def _finish(account: Report, report: Path | None) -> None:
    """Write the report, and end with 1 unless all that was sent is where it should be."""
    _write(account, report)
    if account.lost or account.doubled or account.altered or account.waiting:
        raise typer.Exit(1)


def _stopped_by_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; the second one ends the program at once."""
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop


def _or_say_why(work: Callable[[], T]) -> T:
    try:
        return work()
    except ForebayError as error:
        _fail(str(error))


def _fail(why: str) -> NoReturn:
    typer.echo(f"forebay-sim: {why}", err=True)
    raise typer.Exit(2)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
