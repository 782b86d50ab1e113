"""Chooses the wheel of each package of a stack for one Python on x86-64 Linux, as Nix fetches them one by one.

    wheels.py PYLOCK LOCK VLLM BUILD PYTHON

PYLOCK is the stack as pylock.toml, which alone tells file names; LOCK the requirements with the hashes that count; VLLM
lists `name==version` of what vLLM needs without LMCache, BUILD of what LMCache's build needs; PYTHON is a version like
3.12. Prints JSON: names and SHA-256 of the wheels for vLLM, of those that LMCache needs besides, of those for its build,
and of source distributions: LMCache's, which Nix builds where no other source is named, and vLLM's, which another tree of
vLLM is compared with before it is laid over the wheel (there is none for processors).
"""

import json
import re
import sys
from pathlib import Path

import tomllib
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename


def names(requirements: str) -> set[str]:
    return {line.split("==")[0] for line in Path(requirements).read_text().splitlines() if "==" in line}


def main(pylock: str, lock: str, vllm: str, build: str, python: str) -> None:
    version = tuple(int(part) for part in python.split("."))
    # manylinux2014 up to the glibc of the oldest distribution that is still served, newest first.
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    tags = [
        *cpython_tags(version, platforms=platforms),
        *compatible_tags(version, f"cp{version[0]}{version[1]}", platforms),
    ]
    rank = {tag: place for place, tag in reversed(list(enumerate(tags)))}
    locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", Path(lock).read_text()))
    for_vllm, for_build = names(vllm), names(build)
    chosen: dict[str, dict[str, str]] = {"vllm": {}, "lmcache": {}, "build": {}, "source": {}}
    for package in tomllib.loads(Path(pylock).read_text())["packages"]:
        if package["name"] in ("lmcache", "vllm"):
            source = package["sdist"]
            if source["hashes"]["sha256"] not in locked:
                sys.exit(f"{lock} does not hold the hash of {package['name']}'s source distribution")
            chosen["source"][source["url"].rsplit("/", 1)[-1]] = source["hashes"]["sha256"]
        if package["name"] == "lmcache":
            continue
        best = None
        for wheel in package.get("wheels", []):
            name = wheel["url"].rsplit("/", 1)[-1].replace("%2B", "+")
            sha256 = wheel["hashes"]["sha256"]
            places = [rank[tag] for tag in parse_wheel_filename(name)[3] if tag in rank]
            if sha256 in locked and places and (best is None or min(places) < best[0]):
                best = (min(places), name, sha256)
        if best is None:
            sys.exit(f"{package['name']} has no wheel for Python {python} whose hash stands in {lock}")
        use = "vllm" if package["name"] in for_vllm else "build" if package["name"] in for_build else "lmcache"
        chosen[use][best[1]] = best[2]
    json.dump(chosen, sys.stdout, indent=2, sort_keys=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
