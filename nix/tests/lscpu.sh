#!/usr/bin/env bash
# Tests nix/lscpu.sh: the real lscpu where /sys is there, otherwise what vLLM asks for.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "lscpu: $*" >&2; exit 1; }
answer() { lscpu="$(command -v echo)" bash -euo pipefail ./lscpu.sh "$@"; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
export KV_CORRECTNESS_SYS=$root
said=$(answer --json --extended=CPU,CORE,NODE --online)
python3 - "$said" <<'CHECK' || fail "not what vLLM reads: $said"
import json, os, sys
rows = json.loads(sys.argv[1])["cpus"]
sys.exit(rows != [{"cpu": number, "core": number, "node": 0} for number in range(os.cpu_count())])
CHECK
answer --help 2>/dev/null && fail "a question that has no answer passes"
mkdir -p "$root/devices/system/cpu" && touch "$root/devices/system/cpu/possible"
[ "$(answer --json)" = --json ] || fail "the real one is not asked"
