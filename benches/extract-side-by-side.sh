#!/usr/bin/env bash
# Times the extract stage beside Python's tarfile with pandas and beside `xz -dc`, in turn on the same machine, and prints
# the best time of each with its ratio to ours. Everything a process costs is counted, from start to exit. `pandas` does the
# same work, archive in and the same file of questions out, byte for byte; `pandas_reads` only reads the tables.
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
import json
import sys
import tarfile

import pandas

tables = {}
with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        parts = member.name.removeprefix("./").split("/")
        if len(parts) == 3 and parts[1] in ("dev", "val", "test") and parts[2].endswith(f"_{parts[1]}.csv"):
            subject = parts[2].removesuffix(f"_{parts[1]}.csv")
            tables[subject, parts[1]] = pandas.read_csv(archive.extractfile(member), header=None, keep_default_na=False, dtype=str)
if len(sys.argv) > 2:
    with open(sys.argv[2], "w") as questions:
        order = lambda item: (item[0][0], ["dev", "val", "test"].index(item[0][1]))
        for (subject, split), table in sorted(tables.items(), key=order):
            for row, (text, *options, answer) in enumerate(table.itertuples(index=False), 1):
                name = {"subject": subject, "split": split, "row": row}
                question = {"id": name, "text": text, "options": options, "answer": answer}
                questions.write(json.dumps(question, ensure_ascii=False, separators=(",", ":")) + "\n")
PYTHON

ours() {
    rm -rf "$scratch/out"
    "$binary" stage extract --data "$archive" --out "$scratch/out" --no-cache
}
pandas() { "$python" "$scratch/extract.py" "$archive" "$scratch/questions.jsonl"; }
pandas_reads() { "$python" "$scratch/extract.py" "$archive"; }
xz_alone() { xz -dc "$archive"; }

contenders=(ours pandas pandas_reads xz_alone)
declare -A best
for ((round = 0; round < rounds; round++)); do
    for contender in "${contenders[@]}"; do
        started=${EPOCHREALTIME/./}
        "$contender" >/dev/null 2>"$scratch/messages" || { cat "$scratch/messages" >&2; exit 1; }
        elapsed=$((${EPOCHREALTIME/./} - started))
        if ((elapsed < ${best[$contender]:-elapsed + 1})); then best[$contender]=$elapsed; fi
    done
done
cmp "$scratch/out/extract/questions.jsonl" "$scratch/questions.jsonl"
for contender in "${contenders[@]}"; do
    awk -v name="$contender" -v micros="${best[$contender]}" -v ours="${best[ours]}" \
        'BEGIN { printf "%-12s %8.1f ms  %6.2f times ours\n", name, micros / 1000, micros / ours }'
done
