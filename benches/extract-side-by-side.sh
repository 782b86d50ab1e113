#!/usr/bin/env bash
# Times the extract stage beside `xz -dc` and beside Python's tarfile with pandas, in turn on the same machine, and
# prints the best time of each with its ratio to ours. Everything a process costs is counted, from start to exit.
#
#   benches/extract-side-by-side.sh KV_CORRECTNESS PYTHON_WITH_PANDAS ARCHIVE.tar.xz [ROUNDS]
set -euo pipefail

if (($# < 3)); then
    sed -n '5s/^# *//p' "$0" >&2
    exit 2
fi
binary=$1 python=$2 archive=$3 rounds=${4:-7}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat >"$scratch/extract.py" <<'PYTHON'
import sys
import tarfile

import pandas

rows = 0
with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        parts = member.name.removeprefix("./").split("/")
        if len(parts) == 3 and parts[1] in ("dev", "val", "test") and parts[2].endswith(f"_{parts[1]}.csv"):
            rows += len(pandas.read_csv(archive.extractfile(member), header=None, keep_default_na=False))
print(rows)
PYTHON

ours() {
    rm -rf "$scratch/out"
    "$binary" stage extract --data "$archive" --out "$scratch/out" --no-cache
}
pandas() { "$python" "$scratch/extract.py" "$archive"; }
xz_alone() { xz -dc "$archive"; }

contenders=(ours pandas xz_alone)
declare -A best
for ((round = 0; round < rounds; round++)); do
    for contender in "${contenders[@]}"; do
        started=${EPOCHREALTIME/./}
        "$contender" >/dev/null 2>"$scratch/messages" || { cat "$scratch/messages" >&2; exit 1; }
        elapsed=$((${EPOCHREALTIME/./} - started))
        if ((elapsed < ${best[$contender]:-elapsed + 1})); then best[$contender]=$elapsed; fi
    done
done
for contender in "${contenders[@]}"; do
    awk -v name="$contender" -v micros="${best[$contender]}" -v ours="${best[ours]}" \
        'BEGIN { printf "%-9s %8.1f ms  %6.2f times ours\n", name, micros / 1000, micros / ours }'
done
