"""Make a git repository with a fault in its history out of an unpacked LMCache source distribution (seen with 0.5.6).

    python3 tests/bisect/make_repository.py lmcache-0.5.6 REPOSITORY --fault last-bit

Its ten commits are tagged `good` (the first) and `bad` (the last); `culprit` is the commit that damages what is stored
or loaded, and `unbuildable` one whose build fails. All others change nothing that a test of KV could see. Equal
arguments give equal commits. Standard library and git only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

TRANSFER = "lmcache/v1/multiprocess/transfer_context/base.py"
GATHERED = "    # before consuming these chunks to ensure data validity.\n\n    return chunks\n"
TO_SCATTER = "    if not selected_block_ids:\n        return\n"

# Each fault: where it strikes, in words, and the code that stands before it and with it.
FAULTS = {
    "swapped-blocks": (
        "loading puts the last two blocks of a request in each other's place",
        TO_SCATTER,
        TO_SCATTER + "    selected_block_ids[-2:] = selected_block_ids[:-3:-1]\n",
    ),
    "stale-chunk": (
        "loading fills every chunk of a request with its first one",
        TO_SCATTER,
        "    chunks = [chunks[0] for _ in chunks]\n" + TO_SCATTER,
    ),
    "half-precision": (
        "storing rounds to 8 bits with 3 of mantissa and back",
        GATHERED,
        GATHERED.replace(
            "    return chunks\n",
            "    for chunk in chunks:\n        chunk.copy_(chunk.to(torch.float8_e4m3fn))\n\n    return chunks\n",
        ),
    ),
    "last-bit": (
        "storing changes the lowest bit of one number of each chunk",
        GATHERED,
        GATHERED.replace(
            "    return chunks\n",
            "    for chunk in chunks:\n        chunk.view(torch.int16).view(-1)[0] ^= 1\n\n    return chunks\n",
        ),
    ),
}


def replace(name: str, before: str, after: str) -> Callable[[Path], None]:
    """A change of one place in one file, which must be there once."""

    def change(root: Path) -> None:
        path = root / name
        text = path.read_text()
        if text.count(before) != 1:
            raise SystemExit(f"{name} holds the text to change {text.count(before)} times, not once:\n{before}")
        path.write_text(text.replace(before, after))

    return change


def append(name: str, text: str) -> Callable[[Path], None]:
    """Lines at the end of a file, which is made if need be."""

    def change(root: Path) -> None:
        path = root / name
        path.write_text((path.read_text() if path.exists() else "") + text)

    return change


def commits(fault: str) -> list[tuple[str, str | None, Callable[[Path], None]]]:
    """Subject, tag and change of every commit behind the first."""
    _, before, after = FAULTS[fault]
    broken = "setup_extensions/policy.py"
    half = "\n\ndef _half(n: int) -> int:\n    return n // 2\n"
    hasher = "lmcache/v1/multiprocess/token_hasher.py"
    session = "lmcache/v1/multiprocess/session.py"
    return [
        ("Say in the README where the tests are", None, append("README.md", "\nTests are in `tests/`.\n")),
        ("Add a helper that halves", None, append("lmcache/utils.py", half)),
        ("Say what is hashed", None, append(hasher, "\n# A chunk is hashed with all that stands before it.\n")),
        ("Say who closes a session", None, append(session, "\n# Whoever opened a session closes it.\n")),
        ("Collect extensions in one expression", "unbuildable", append(broken, "\nEXTENSIONS = [\n")),
        ("Mend the expression", None, replace(broken, "\nEXTENSIONS = [\n", "\n")),
        ("Transfer blocks in fewer steps", "culprit", replace(TRANSFER, before, after)),
        ("Forget the helper that halves", None, replace("lmcache/utils.py", half, "")),
        ("Say in the README what tests are for", "bad", append("README.md", "\nTests find faults.\n")),
    ]


def main() -> None:
    """Make the repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an unpacked source distribution of LMCache")
    parser.add_argument("repository", type=Path, help="the folder to make, which must not be there")
    parser.add_argument("--fault", choices=sorted(FAULTS), default="last-bit")
    arguments = parser.parse_args()
    root: Path = arguments.repository
    shutil.copytree(arguments.source, root, ignore=shutil.ignore_patterns("build", "__pycache__", "*.egg-info", "*.so"))
    identity = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.org"}
    identity |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in identity.items()}

    def git(*words: str) -> None:
        time = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
        subprocess.run(["git", "-C", str(root), *words], check=True, env=os.environ | identity | time)

    def commit(subject: str, tag: str | None) -> None:
        git("add", "--all", "--force")
        git("commit", "--quiet", "--no-gpg-sign", "--message", subject)
        if tag is not None:
            git("tag", tag)

    git("init", "--quiet", "--initial-branch=main")
    commit("Begin with the source distribution", "good")
    for subject, tag, change in commits(arguments.fault):
        change(root)
        commit(subject, tag)
    print(f"{root}: {FAULTS[arguments.fault][0]}")


if __name__ == "__main__":
    main()
