"""A week without a link: 1,000 samples/s into a store of 256 MB, by each of the three policies, and the way back.

    ./task bench week [--scale N] [--days N] [--policy NAME ...] [--plot FILE] [--folder FOLDER] [--json FILE]

Each policy runs in a process of its own (benchmarks/outage.py says what is real in it and what is modelled), on
virtual time: some nine minutes of CPU for a whole week. `--scale 7` divides the time away, the store and its
journal by 7, in a little more than one. `--folder` keeps POLICY.json of each, and what is there already is not
measured again, so that it can be drawn later. `--plot` draws it, with matplotlib (extra `plots`), which `./task`
installs. Figures, for each policy:

    kept_10s, kept_100s, kept_1000s    share of the outage, in series times seconds, that came at this, or finer
    holes_s, overlaps_s                seconds times series of the outage in no window (dropped or not taken), or in two
    drain_ratio                        the outage over the time that its backlog took
    live_p99_s, alarm_p99_s            from making to receipt, while the backlog drained
    peak_rss_mb, cpu_us_per_sample
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.harness import parser, report
from benchmarks.outage import LEVELS_S, Outcome, outage_of

POLICIES = ("degrade", "block", "drop_oldest")
MIB = 1 << 20


def measured(folder: Path, policy: str, days: float, scale: int) -> Outcome:
    """What is in the folder, or is put there. Exits where what is there was measured otherwise."""
    path = folder / f"{policy}.json"
    if not path.exists():
        argv = [sys.executable, "-P", "-m", "benchmarks.outage", policy, "--days", str(days), "--scale", str(scale)]
        subprocess.run([*argv, "--json", str(path)], check=True)
    outcome = msgspec.json.decode(path.read_bytes(), type=Outcome)
    if (outcome.days, outcome.scale) != (days, scale):
        sys.exit(f"{path} is of {outcome.days:g} days at scale {outcome.scale}: choose another folder, or the same")
    return outcome


def figures_of(outcome: Outcome) -> dict[str, float]:
    outage_s = outage_of(outcome.days / outcome.scale)
    shares = np.cumsum(np.mean(outcome.kept, axis=0))
    return {
        "kept_10s": float(shares[0]),
        "kept_100s": float(shares[1]),
        "kept_1000s": float(shares[2]),
        "kept": float(shares[-1]),
        "holes_s": outcome.holes_s,
        "overlaps_s": outcome.overlaps_s,
        "wrong_counts": outcome.wrong_counts,
        "samples_read": outcome.samples_read,
        "samples_skipped": outcome.samples_skipped,
        "samples_dropped": outcome.samples_dropped,
        "ledger_balances": float(outcome.ledger_balances),
        "alarms": outcome.alarms_cloud,
        "drain_s": outcome.drain_s,
        "drain_ratio": outage_s / outcome.drain_s,
        "drained_mb": outcome.drained_bytes / 1e6,
        "drain_cpu_s": outcome.drain_cpu_s,
        "live_p99_s": outcome.live_p99_s,
        "alarm_p99_s": outcome.alarm_p99_s,
        "repeated_frames": outcome.repeated_frames,
        "peak_rss_mb": outcome.peak_rss_bytes / 1e6,
        "cpu_us_per_sample": outcome.outage_cpu_s / max(outcome.samples_read, 1) * 1e6,
    }


def plot(outcomes: list[Outcome], path: Path) -> None:
    """Three rows: the store's depth, what was kept of each hour, and the way back."""
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    colours = ("#1b4965", "#3f88a5", "#8cc3d8", "#cfe6ef", "#e9f3f7")
    figure, axes = pyplot.subplots(3, len(outcomes), figsize=(4.2 * len(outcomes), 8), squeeze=False)
    for column, outcome in enumerate(outcomes):
        course, outage_s = outcome.course, outage_of(outcome.days / outcome.scale)
        at_s = np.array(course.at_s)
        days = at_s / outage_s * outcome.days
        away = at_s <= outage_s
        depth, kept, back = axes[:, column]
        depth.set_title(outcome.policy)
        depth.plot(days[away], np.array(course.used_bytes)[away] / MIB * outcome.scale, color=colours[0], label="used")
        depth.plot(
            days[away], np.array(course.journal_bytes)[away] / MIB * outcome.scale, color="#c06014", label="journal"
        )
        depth.axhline(outcome.limit_bytes / MIB, color="grey", linestyle=":", label="max_size")
        depth.set(xlabel="days away", ylim=(0, 1.05 * outcome.limit_bytes / MIB))
        shares = np.array(outcome.kept).T * 100
        names = [f"{level:,} s" for level in LEVELS_S] + ["longer"]
        kept.stackplot(np.linspace(0, outcome.days, shares.shape[1]), shares, labels=names, colors=colours)
        kept.set(xlabel="day of the outage", ylim=(0, 101))
        minutes = (at_s[~away] - outage_s) / 60 * outcome.scale
        back.plot(minutes, np.array(course.outbox_bytes)[~away] / MIB * outcome.scale, color=colours[0])
        back.set(xlabel="minutes since the link is back", ylim=(0, None))
        back.text(
            0.97,
            0.93,
            f"{outage_s / outcome.drain_s:,.0f} times faster than it was made\n"
            f"live p99 {outcome.live_p99_s:.2g} s, alarms {outcome.alarm_p99_s:.2g} s",
            transform=back.transAxes,
            ha="right",
            va="top",
        )
    for row, name in enumerate(("store, MiB", "kept at, % of the series", "waiting, MiB")):
        axes[row, 0].set_ylabel(name)
    axes[0, 0].legend(loc="center right", fontsize="small")
    axes[1, 0].legend(loc="lower right", fontsize="small", title="windows up to", framealpha=1)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--days", type=float, default=7.0)
    options.add_argument("--scale", type=int, default=1)
    options.add_argument("--policy", choices=POLICIES, action="append", help="one of them; may be given again")
    options.add_argument("--plot", type=Path, metavar="FILE")
    options.add_argument("--folder", type=Path, help="where POLICY.json of each is kept, or is already")
    chosen = options.parse_args()
    if chosen.plot and find_spec("matplotlib") is None:
        sys.exit("the plot needs matplotlib: pip install 'forebay[plots]', or let ./task do it")
    policies = chosen.policy or POLICIES
    with tempfile.TemporaryDirectory(prefix="forebay-week-") as name:
        folder = chosen.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = [measured(folder, policy, chosen.days, chosen.scale) for policy in policies]
    each = [figures_of(outcome) for outcome in outcomes]
    rows: list[list[object]] = [["", *policies]]
    rows += [[name, *(float(figures[name]) for figures in each)] for name in each[0]]
    flat = {
        f"{name}_{policy}": figures[name] for policy, figures in zip(policies, each, strict=True) for name in figures
    }
    report(f"{chosen.days:g} days away at 1,000 samples/s, scale {chosen.scale}", rows, flat, chosen.json)
    if chosen.plot:
        plot(outcomes, chosen.plot)
    else:
        print("\nwith --plot FILE this is drawn")


if __name__ == "__main__":
    main()
