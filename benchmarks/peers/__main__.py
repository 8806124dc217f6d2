"""Forebay beside Telegraf while both are killed: what reaches InfluxDB of the same load, summarised or not.

    ./task bench peers [--messages N] [--seed S] [--only KEY ...] [--json FILE]

150,000 messages at QoS 1 come at 5,000/s from 100 devices, each with its own time, while the program under test
is killed with `kill -9` every 1.5 to 3.5 s, as drawn from the seed (the same for all), and started again at once.
`contenders.py` says how each is configured, `trial.py` how a run goes, `account.py` how it is counted.

    sent, stored, lost, doubled    samples, compared by series and time (Telegraf's summaries: by series alone).
                                   A point that is written again replaces itself in InfluxDB: what passes samples on
                                   cannot double them, only what counts them can
    lost later                     lost after one more restart, once it had settled: what was merely held back has come
    seconds                        from the first message to the last that arrived before that restart
    CPU us, cloud's                CPU a message of what is killed, over all its lives, and of Forebay's ingester
    written MB                     pages that what is killed made dirty (`write_bytes` of proc(5)): it varies widely,
                                   since a page that waits for the kernel to write it counts once
    load                           of the machine in the minute before: it may have other work
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.harness import machine, parser, table
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.trial import Outcome, Plan, run

HEAD = (
    *("", "sent", "stored", "lost", "lost %", "doubled", "lost later", "kills", "seconds"),
    *("CPU us", "cloud's", "written MB", "load"),
)


def figures_of(outcome: Outcome) -> dict[str, float]:
    """In the order of the table."""
    stored, lost, doubled = outcome.account
    return {
        "sent": outcome.sent,
        "stored": stored,
        "lost": lost,
        "lost_pct": lost / outcome.sent * 100,
        "doubled": doubled,
        "lost_after_restart": outcome.later.lost,
        "kills": outcome.kills,
        "seconds": outcome.seconds,
        "cpu_us_per_message": outcome.cpu_s / outcome.sent * 1e6,
        "cloud_cpu_us_per_message": outcome.cloud_cpu_s / outcome.sent * 1e6,
        "written_mb": outcome.written_bytes / 1e6,
        "load": outcome.load,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--messages", type=int, default=Plan.messages)
    options.add_argument("--seed", type=int, default=Plan.seed, help="of the times at which they are killed")
    keys = [contender.key for contender in CONTENDERS]
    options.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="KEY", help=", ".join(keys))
    chosen = options.parse_args()
    plan = Plan(messages=chosen.messages, seed=chosen.seed)
    rows: list[tuple[object, ...]] = [HEAD]
    figures: dict[str, float] = {"seed": chosen.seed}
    for contender in CONTENDERS:
        if contender.key not in chosen.only:
            continue
        with tempfile.TemporaryDirectory(prefix="forebay-peers-") as folder:
            outcome = run(contender, plan, Path(folder))
        row = figures_of(outcome)
        rows.append((contender.name, *row.values()))
        figures |= {f"{contender.key}_{name}": value for name, value in row.items()}
        lost, doubled = outcome.account.lost, outcome.account.doubled
        said = f", found ended by itself {outcome.ended} times" if outcome.ended else ""
        print(f"{contender.name}: {lost:,} lost, {doubled:,} doubled{said}", file=sys.stderr)
    print(f"\n{plan.messages:,} messages at {plan.per_s:,.0f}/s under kill -9, seed {plan.seed}\n{machine()}\n")
    print(table(rows))
    if chosen.json is not None:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
