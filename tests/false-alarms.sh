#!/usr/bin/env bash
# Runs the arm with a cache again and again, each time with new engines, against one baseline and control, and counts the verdicts: on a
# stack that is right, any but "equivalent" is a false alarm. Usage: tests/false-alarms.sh TIMES [arguments of `kv-correctness run`].
# KV_CORRECTNESS names the program, target/release/kv-correctness if left out. What each run printed lies in false-alarms-N.log.
set -u
times=${1-}
case "$times" in
  '' | *[!0-9]* | 0) echo "usage: tests/false-alarms.sh TIMES [ARGUMENT...], TIMES above 0" >&2; exit 2 ;;
esac
shift
program=${KV_CORRECTNESS-$(dirname "$0")/../target/release/kv-correctness}
alarms=0 number=1
while [ "$number" -le "$times" ]; do
  since=$SECONDS log=false-alarms-$number.log
  "$program" run --force cached --out "false-alarms-$number" "$@" >"$log" 2>&1 </dev/null
  code=$?
  [ "$code" -eq 0 ] || alarms=$((alarms + 1))
  echo "$number: exit code $code in $((SECONDS - since)) s; $(grep -E '^  (kv|hits) ' "$log" | sed 's/  */ /g' | tr '\n' ';')"
  number=$((number + 1))
done
echo "$alarms of $times runs were not equivalent"
[ "$alarms" -eq 0 ]
