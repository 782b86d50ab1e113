#!/usr/bin/env bash
# Tests nix/stacks/atlas.py on made-up charts, and that the real ones can be read: atlas.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf "$1" && mkdir -p "$1"
fail() { echo "atlas: $*" >&2; exit 1; }
printf '# vllm==1 is asked for\nvllm==1\nlmcache==1\ntorch==1\nsix==1.17.0\n' >"$1/made.in"
# chart: a chart of the rows on stdin, each VLLM LMCACHE MODEL ROUTE VERDICT TORCH; a VERDICT that is none is another outcome
chart() {
  python3 -c 'import json, sys
rows = []
for vllm, lmcache, model, route, verdict, torch in map(str.split, sys.stdin):
    judged = {"kind": "judged", "verdict": verdict}
    rows.append({"cell": {"vllm": vllm, "lmcache": lmcache, "model": model, "route": route}}
        | ({"outcome": {"kind": verdict}} if verdict in ("waiting", "not_run") else {"outcome": judged, "made": {"torch": torch}}))
print(json.dumps({"schema": 1, "name": "made", "rows": rows}))'
}
# right VLLM LMCACHE TORCH: both models' rows
right() { printf "$1 $2 %s mp equivalent $3\n" canary-dense canary-mla; }
# moved: the pins that a chart on stdin moves made.in to
moved() { chart >"$1/chart.json" && python3 nix/stacks/atlas.py "$1/chart.json" "$1/made.in" 2>"$1/error" >"$1/moved.in"; }

rows() {
  right 0.9.0 3.0.0 2.1.0 # an older vLLM, with the newest LMCache
  right 0.10.0 1.0.9 2.2.0
  right 0.10.0 1.0.10 2.3.0
  right 0.10.0 1.1.0rc1 2.4.0 # no release
  right 0.11.0.dev1 1.0.9 2.4.0
  right 0.10.1 1.0.9 unknown
  right 0.10.2 1.0.9 2.4.0 | sed '/canary-mla/s/2[.]4/2.5/' # not one environment
  # Other routes and models do not count, neither for a pair nor against it.
  printf '0.10.0 1.0.10 %s degraded 2.3.0\n' "canary-dense in-process" "canary-swa mp" "other mp"
  right 0.12.0 1.0.10 2.4.0 | sed 's/ mp / mp+fs /'
  # Not right for one of the two models.
  for verdict in degraded not_exercised waiting not_run; do
    right 0.13.0 "1.0.$((++last))" 2.4.0 | sed "/canary-mla/s/equivalent/$verdict/"
  done
  right 0.14.0 1.0.10 2.4.0 | sed '/canary-mla/d'
  right 0.15.0 1.0.10 2.4.0 && right 0.15.0 1.0.10 2.4.0 | sed 's/equivalent/degraded/' # twice, and one is bad
}
last=0
rows | moved "$1" || fail "no pair: $(cat "$1/error")"
expected='# vllm==1 is asked for,vllm==0.10.0,lmcache==1.0.10,torch==2.3.0,six==1.17.0,'
[ "$(tr '\n' , <"$1/moved.in")" = "$expected" ] || fail "moved to $(cat "$1/moved.in")"
rows | grep 'mp+fs' | moved "$1" && fail "a chart without a right pair moves a stack"
grep -q "no pair of the chart made is right over mp" "$1/error" || fail "no reason: $(cat "$1/error")"
for real in cpu/atlas.json:cpu cuda/atlas.json:cuda; do
  python3 nix/stacks/atlas.py "docs/atlas/${real%:*}" "nix/stacks/${real#*:}.in" >/dev/null 2>"$1/error" || fail "$(cat "$1/error")"
done
