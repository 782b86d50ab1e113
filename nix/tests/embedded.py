"""Says which files that the driver's code embeds or its tests read are missing in what Nix builds: embedded.py DRIVER TESTS.

DRIVER is the source of the package, TESTS that of the check, which runs the tests as well.
"""

import re
import sys
from pathlib import Path

BESIDE = re.compile(r'include(?:_str|_bytes)?!\(\s*"([^"$]+)"')
BELOW = re.compile(r'(?:include_dir!\("\$CARGO_MANIFEST_DIR|env!\("CARGO_MANIFEST_DIR"\), "(?!/\.\.))/([^"{]+)"')


def missing(source: Path, tests: bool) -> list[str]:
    """What the code below `source` names and `source` lacks; what tests name is asked for only where they are run."""
    lacking = []
    for file in sorted(source.rglob("*.rs")):
        if not tests and file.stem.endswith("tests"):
            continue
        text = file.read_text()
        named = [file.parent / match for match in BESIDE.findall(text)]
        named += [source / match for match in BELOW.findall(text)]
        lacking += [f"{file.relative_to(source)} names {path}" for path in named if not path.exists()]
    return lacking


def main(driver: str, tests: str) -> None:
    faults = missing(Path(driver), tests=False) + missing(Path(tests), tests=True)
    if faults:
        sys.exit("\n".join(["embedded:", *faults]))


if __name__ == "__main__":
    main(*sys.argv[1:])
