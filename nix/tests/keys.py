"""Says by the keys in a store what another LMCache made run again: keys.py CACHE LOG.

The store holds two runs that differ in LMCache alone; LOG is what the second one said.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def main(cache: str, log: str) -> None:
    keys = defaultdict(list)
    for path in Path(cache).rglob("key.json"):
        key = json.loads(path.read_text())
        keys[key["stage"]].append(key)

    def engine(key: dict) -> dict:
        return key["fields"]["parameters"]["engine"]

    models = len({engine(key)["model"] for key in keys["baseline"]})
    found = {stage: len(keys[stage]) for stage in ("extract", "baseline", "control", "cached")}
    wanted = {"extract": 1, "baseline": models, "control": models, "cached": 2 * models}
    assert models > 0 and found == wanted, f"artifacts {found}, expected {wanted}"
    for key in keys["baseline"] + keys["control"]:
        environment = engine(key)["environment"]
        assert environment["store_path"].endswith("-env-cpu-baseline"), environment["store_path"]
        assert "lmcache" not in environment["packages"], "LMCache is in the baseline's key"
    paths = {engine(key)["environment"]["store_path"] for key in keys["cached"]}
    assert len(paths) == 2 and all(path.endswith("-env-cpu-lmcache") for path in paths), paths
    lines = Path(log).read_text().splitlines()
    for stage in ("extract", "baseline", "control"):
        assert any(line.startswith(stage) and line.endswith("re-used") for line in lines), (
            f"{stage} is not said to be re-used"
        )
    print(f"keys: {found}; {sorted(paths)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
