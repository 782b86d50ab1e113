#!/usr/bin/env bash
# Runs the README's test command again and again beside a load of twice the machine's cores: a test that depends on speed
# fails sooner or later. Usage: tests/under-load.sh [TIMES, 10 if left out] [AT_ONCE, 1 if left out] [arguments of cargo test]
set -eu
cd "$(dirname "$0")/.."
times=${1-10} at_once=${2-1}
case "$times $at_once" in
  *[!0-9\ ]* | 0\ * | *\ 0) echo "usage: tests/under-load.sh [TIMES [AT_ONCE [ARGUMENT...]]], both numbers above 0" >&2; exit 2 ;;
esac
shift $(($# < 2 ? $# : 2))
cargo test --locked --no-run --quiet

started=()
end_all() {
  # Each in a process group of its own: Cargo, what it started, and what that did.
  for group in "${started[@]}"; do kill -- "-$group" 2>/dev/null || true; done
}
trap end_all EXIT
trap 'exit 130' INT TERM
set -m
number=0
while [ "$number" -lt $((2 * $(nproc))) ]; do
  sh -c 'while :; do :; done' &
  started+=("$!")
  number=$((number + 1))
done

logs=$(mktemp -d)
# Run number $1, and its outcome.
one_run() {
  local log=target/under-load-$1.log since=$SECONDS
  shift
  if cargo test --locked "$@" >"$log" 2>&1; then
    echo "$log: passed in $((SECONDS - since)) s"
  else
    touch "$logs/failed-$(basename "$log")"
    echo "$log: FAILED in $((SECONDS - since)) s"
    grep -E '^(---- |thread |error:|test .* FAILED)' "$log" || true
  fi
}
# Every AT_ONCE-th run, from number $1 on.
stream() {
  local run=$1
  shift
  while [ "$run" -le "$times" ]; do
    one_run "$run" "$@"
    run=$((run + at_once))
  done
}
streams=() number=1
while [ "$number" -le "$at_once" ]; do
  stream "$number" "$@" &
  started+=("$!") streams+=("$!")
  number=$((number + 1))
done
wait "${streams[@]}"
failed=$(find "$logs" -name 'failed-*' | wc -l)
rm -rf "$logs"
echo "$failed of $times runs failed"
[ "$failed" -eq 0 ]
