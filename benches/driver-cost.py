#!/usr/bin/env python3
"""Measures what the driver itself costs in a run, engines and servers left out.

    python3 benches/driver-cost.py COMMAND...      e.g. target/release/kv-correctness run --no-cache

Reads the driver's own processor time and peak memory from /proc while it runs, several times a second; both count the
driver alone, not its children. Prints them beside the wall time of the run.
"""

import os
import subprocess
import sys
import time

INTERVAL_SECONDS = 0.02


def own_cost(pid: int) -> tuple[float, float]:
    """Returns processor seconds and peak memory in MiB of one process, so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        peak = next((int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    return seconds, peak / 1024


def main() -> int:
    """Runs the command to its end and prints one line."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    started = time.monotonic()
    process = subprocess.Popen(sys.argv[1:])
    seconds = peak = 0.0
    while process.poll() is None:
        try:
            seconds, peak = max((seconds, peak), own_cost(process.pid))
        except (OSError, ValueError, IndexError):
            break  # it has just ended
        time.sleep(INTERVAL_SECONDS)
    status = process.wait()
    wall = time.monotonic() - started
    share = 100 * seconds / wall
    print(f"driver alone: {seconds:.2f} s of {wall:.2f} s ({share:.2f} %), peak memory {peak:.1f} MiB; exit status {status}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
