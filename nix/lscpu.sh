# lscpu, also where there is no /sys: then only what vLLM asks for, `--json --extended=CPU,CORE,NODE --online`. Sourced by a
# program that sets `lscpu`, the real one.
# shellcheck shell=bash

if [ -e "${KV_CORRECTNESS_SYS:-/sys}/devices/system/cpu/possible" ]; then exec "${lscpu:?}" "$@"; fi
case " $* " in
  *" --extended=CPU,CORE,NODE "*) ;;
  *) echo "lscpu: /sys is not mounted, and without it only --json --extended=CPU,CORE,NODE is answered" >&2; exit 1 ;;
esac
processors=$(nproc --all)
rows=
for ((number = 0; number < processors; number++)); do
  rows+="${rows:+,}{\"cpu\":$number,\"core\":$number,\"node\":0}"
done
echo "{\"cpus\":[$rows]}"
