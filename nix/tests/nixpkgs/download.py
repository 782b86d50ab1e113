"""Downloads the wheels of a stack with pip, those whose digests its list holds: download.py LIST PYTHON FOLDER.

LIST is nix/stacks/STACK.wheels.json, PYTHON a version like 3.12. What lies in FOLDER already is not fetched again.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(listed: str, python: str, folder: str) -> None:
    lists = json.loads(Path(listed).read_text())
    files = {file: digest for use, wheels in lists.items() if use != "source" for file, digest in wheels.items()}
    missing = [file for file, digest in sorted(files.items()) if not holds(Path(folder) / file, digest)]
    if not missing:
        return
    requirements = [f"{'=='.join(file.split('-')[:2])} --hash=sha256:{files[file]}\n" for file in missing]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64", "any"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(requirements)
        file.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += ["--only-binary", ":all:"]
        command += ["--python-version", python, "--implementation", "cp", "--dest", folder, "--requirement", file.name]
        for platform in platforms:
            command += ["--platform", platform]
        subprocess.run(command, check=True)


def holds(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.file_digest(path.open("rb"), "sha256").hexdigest() == digest


if __name__ == "__main__":
    main(*sys.argv[1:])
