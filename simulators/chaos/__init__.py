"""Forebay under faults: real processes, real servers, and faults drawn at random. `run.py` is where to start."""
