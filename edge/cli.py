"""forebay-edge run | check | watch | status | deadletters. argparse, since the daemon stays small."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from devices.errors import ForebayError
from devices.findings import said_once
from edge.ask import ask, must_be_free
from edge.config import EdgeConfig, StatusConfig, load_config, load_status

LISTEN_S = 5.0


class Command(NamedTuple):
    """A command's help, with an example."""

    name: str
    summary: str
    description: str
    example: str


COMMANDS = (
    Command(
        "run",
        "run the gateway",
        "Run the gateway until SIGTERM or Ctrl-C: read the sources, recognise what is abnormal, summarise, store, "
        "and send. It may be killed at any time; what it acknowledged is not lost.",
        "forebay-edge run /etc/forebay/edge.toml",
    ),
    Command(
        "check",
        "look at everything the configuration names, and change nothing",
        "Validate configuration and profiles, open each source for a few seconds, show its first decoded samples and "
        "what would be sent, and ask the uplink's broker for its limits. Exit code 0 only if all is well.",
        "forebay-edge check /etc/forebay/edge.toml --seconds 10",
    ),
    Command(
        "watch",
        "show what a source of the running gateway brings",
        "Show, from the running gateway, the raw bytes, the decoded values and the last error of a source, live, "
        "until Ctrl-C. The port stays with the gateway.",
        "forebay-edge watch /etc/forebay/edge.toml pump1",
    ),
    Command(
        "status",
        "show how the running gateway is doing",
        "Show, from the running gateway: sources, store, link, alarms, and the account of all samples.",
        "forebay-edge status /etc/forebay/edge.toml",
    ),
    Command(
        "deadletters",
        "list, show or replay what could not be read or was refused",
        "Ask the running gateway for the messages that could not be decoded and frames that the cloud refused: list "
        "them, show one whole, or replay one, now that a profile or the cloud was put right.",
        "forebay-edge deadletters /etc/forebay/edge.toml replay 17",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. 2: it could not be done, and the reason is on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments, Path(arguments.config))
    except ForebayError as error:
        print(f"forebay-edge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `forebay-edge watch ... | head`
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="forebay-edge",
        description="The gateway of Forebay: from sensors to the cloud, with nothing lost.",
        epilog="example: forebay-edge check gateway.toml && forebay-edge run gateway.toml",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for command in COMMANDS:
        made[command.name] = each = commands.add_parser(
            command.name, help=command.summary, description=command.description, epilog=f"example: {command.example}"
        )
        each.add_argument("config", metavar="CONFIG", help="the gateway's TOML file")
    made["check"].add_argument(
        "--seconds", type=_seconds, default=LISTEN_S, help="how long to listen to each source (default: %(default)g)"
    )
    made["watch"].add_argument("source", metavar="SOURCE", help="name of the source in the file")
    made["watch"].add_argument("--json", action="store_true", help="JSON lines, as the gateway sends them")
    letters = made["deadletters"]
    letters.add_argument("action", choices=("list", "show", "replay"), help="what to do")
    letters.add_argument("id", type=int, nargs="?", metavar="ID", help="number of a dead letter, for show and replay")
    letters.add_argument("--json", action="store_true", help="JSON, as the gateway sends it")
    made["status"].add_argument("--json", action="store_true", help="JSON, as the gateway sends it")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 3600")
    return seconds


def _run(arguments: argparse.Namespace, path: Path) -> int:
    if arguments.command == "run":
        from edge.daemon import run  # numba, sqlite3 and the like, which the other commands do not need
        from edge.kernels.build import build_in_background

        config = load_config(path)
        must_be_free(config.status)
        _log_as_json()
        build_in_background()
        return run(config, path)
    if arguments.command == "check":
        return _check(load_config(path), path, arguments.seconds)
    where = load_status(path)  # not the whole file: what runs may have been started with a better one
    if arguments.command == "watch":
        return _watch(where, arguments.source, arguments.json)
    if arguments.command == "deadletters":
        return _deadletters(where, arguments.action, arguments.id, arguments.json)
    return _status(where, arguments.json)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, with the keys that the ingester's log has."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _check(config: EdgeConfig, path: Path, listen_s: float) -> int:
    from edge.check import check

    with said_once():
        found = asyncio.run(check(config, path, listen_s))
    print("\n".join(map(_safe, found.lines)))
    return 0 if not found.problems else 1


# -- asking the daemon -------------------------------------------------------------------------------


def _status(where: StatusConfig, as_json: bool) -> int:
    with ask(where, "/status") as answer:
        body = answer.read()
    print(body.decode().rstrip() if as_json else "\n".join(outline(json.loads(body))))
    return 0


def _deadletters(where: StatusConfig, action: str, letter_id: int | None, as_json: bool) -> int:
    if action == "list":
        with ask(where, "/deadletters") as answer:
            body = answer.read()
        print(body.decode().rstrip() if as_json else "\n".join(_letter_table(json.loads(body))))
        return 0
    if letter_id is None:
        raise ForebayError(f"name the dead letter: forebay-edge deadletters CONFIG {action} ID; `list` shows them")
    if action == "replay":
        with ask(where, f"/deadletters/{letter_id}/replay", "POST") as answer:
            print(answer.read().decode().rstrip())
        return 0
    with ask(where, f"/deadletters/{letter_id}") as answer:
        body = answer.read()
    print(body.decode().rstrip() if as_json else "\n".join(outline(json.loads(body))))
    return 0


def _letter_table(letters: list[dict[str, Any]]) -> Iterator[str]:
    if not letters:
        yield "no dead letters"
        return
    rows = {}
    for letter in letters:
        when = datetime.fromtimestamp(letter["at_ns"] / 1e9, UTC).isoformat(timespec="seconds")
        rows[str(letter["id"])] = {"when": when, **{k: letter[k] for k in ("source", "reason", "bytes", "detail")}}
    yield from table(rows, "")


def _watch(where: StatusConfig, source: str, as_json: bool) -> int:
    with ask(where, f"/watch?source={quote(source, safe='')}") as answer:
        for line in answer:
            print(line.decode().rstrip() if as_json else "\n".join(record_lines(json.loads(line))), flush=True)
    return 0


# -- as text -----------------------------------------------------------------------------------------


def outline(tree: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A nested dict as lines; a dict of dicts with the same keys as a table. Names that devices chose are made safe."""
    width = max((len(key) for key, value in tree.items() if not isinstance(value, dict)), default=0)
    for key, value in tree.items():
        name = _safe(key)
        if isinstance(value, dict):
            if not value:
                continue
            yield f"{indent}{name}"
            yield from table(value, indent + "  ") if _is_table(value) else outline(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{indent}{name}"
            yield from (f"{indent}  {_safe(_text(item))}" for item in value)
        else:
            yield f"{indent}{name:<{width}}  {_safe(_text(value, key))}".rstrip()


def table(rows: dict[str, dict[str, Any]], indent: str) -> Iterator[str]:
    """Rows with one header."""
    columns = list(next(iter(rows.values())))
    cells = [["", *columns], *([name, *(_text(row[c], c) for c in columns)] for name, row in rows.items())]
    safe = [[_safe(cell) for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in safe) for i in range(len(safe[0]))]
    for row in safe:
        yield indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def record_lines(record: dict[str, Any]) -> Iterator[str]:
    """A record of `watch` as lines."""
    if record.get("text"):
        yield f"<  {_safe(record['text'].rstrip())}"
        if any(ord(c) < 32 and c not in "\t\r\n" for c in record["text"]) or "\\x" in record["text"]:
            yield f"   {record['hex']}"
    for value in record.get("values", ()):
        yield f"   {_safe(value['device'])}  {_safe(value['channel'])} = {value['value']!r}"
    for reason, count in record.get("rejected", {}).items():
        yield f"   rejected: {reason} {count}"
    if record.get("error"):
        yield f"!  {_safe(record['error'])}"
    elif not record.get("text"):
        yield f"   ({record.get('state', 'unknown')}, nothing new)"


def _is_table(value: dict[str, Any]) -> bool:
    rows = list(value.values())
    return all(isinstance(row, dict) and list(row) == list(rows[0]) for row in rows) and not any(
        isinstance(cell, dict | list) for row in rows for cell in row.values()
    )


def _text(value: Any, key: str = "") -> str:
    """For people; what the key calls bytes with a unit."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    if "bytes" in key.split("_") and isinstance(value, int | float) and value >= 0:
        return _size(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _size(size_bytes: float) -> str:
    """Such as `1.4 MiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(size_bytes, 1))) // 10, len(units) - 1)
    return f"{size_bytes / 1024**power:.4g} {units[power]}"


def _safe(text: str) -> str:
    """Control characters of a device must not reach a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


if __name__ == "__main__":
    sys.exit(main())
