"""Holds what NixOS made of the settings in docs/builders.md against what that page says: builders.py PAGE FOLDER."""

import json
import re
import sys
from pathlib import Path


def main(page: str, folder: str) -> None:
    asks, builds = (json.loads((Path(folder) / f"{name}.json").read_text()) for name in ("asks", "builds"))
    faults = [f"no option of NixOS: {name}" for made in (asks, builds) for name in made["unknown"]]
    faults += [f"NixOS refuses: {message}" for made in (asks, builds) for message in made["refused"]]
    if "cuda" not in builds["features"]:
        faults.append(f"the builder's features are {builds['features']}")
    if not builds["hook"].endswith("/bin/nix-required-mounts"):
        faults.append(f"the builder's hook is {builds['hook']!r}")
    shown = re.findall(r"^```machines\n(.*?)^```$", Path(page).read_text(), re.MULTILINE | re.DOTALL)
    if shown != [asks["machines"]]:
        faults.append(f"NixOS writes {asks['machines']!r}, and the page shows {shown}")
    if faults:
        sys.exit("\n".join([f"{page}:", *faults]))


if __name__ == "__main__":
    main(*sys.argv[1:])
