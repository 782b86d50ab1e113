#!/usr/bin/env bash
# Runs the README's test command again and again beside a load of twice the machine's cores: a test that depends on speed
# fails sooner or later. Usage: tests/under-load.sh [TIMES, 10 if left out] [arguments of cargo test]
set -eu
cd "$(dirname "$0")/.."
times=${1-10}
[ $# -eq 0 ] || shift
cargo test --locked --no-run --quiet

load= running=
end_all() {
  for process in $load; do kill "$process" 2>/dev/null || true; done
  # Cargo, what it started, and what that did.
  [ -z "$running" ] || kill -- "-$running" 2>/dev/null || true
}
trap end_all EXIT
trap 'exit 130' INT TERM
number=0
while [ "$number" -lt $((2 * $(nproc))) ]; do
  sh -c 'while :; do :; done' &
  load="$load $!"
  number=$((number + 1))
done

failed=0 run=1
log=$(mktemp)
while [ "$run" -le "$times" ]; do
  started=$(date +%s)
  set -m # in a process group of its own
  cargo test --locked "$@" >"$log" 2>&1 &
  running=$!
  set +m
  if wait "$running"; then
    echo "run $run of $times: passed in $(($(date +%s) - started)) s"
  else
    failed=$((failed + 1))
    echo "run $run of $times: FAILED in $(($(date +%s) - started)) s"
    grep -E '^(---- |thread |error:|test .* FAILED)' "$log" || true
    cp "$log" "target/under-load-$run.log"
  fi
  running=
  run=$((run + 1))
done
rm -f "$log"
echo "$failed of $times runs failed"
[ "$failed" -eq 0 ]
