"""The edge daemon: reads sensors, finds what is abnormal, keeps custody until the cloud has answered."""

import signal
import sys

if sys.argv[1:2] == ["run"]:
    # Before anything is imported, which takes most of a start: a hang-up then would end the daemon, and later reloads.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
