#!/usr/bin/env bash
# Measures what a newcomer waits for, and what comes after, on this machine, and prints wall and processor seconds of each, the
# median of ROUNDS (default 3): a fresh clone with empty caches to the verdict, the same with environment and build there,
# another LMCache against kept baselines, two routes, and the remaining time that was told after the first minute.
#
#   benches/first-verdict.sh [ROUNDS]
#
# Run it where nothing else runs. It clones the commit that is checked out, so commit first; it needs 8 GB below TMPDIR, and
# the registries of Rust crates and Python packages. Crates and wheels come from there each time: a round downloads 2 GB.
# PARTS="warm lmcache routes" chooses parts; of `warm` and what follows the environment of KV_CORRECTNESS_ENV serves, if set.
set -euo pipefail
rounds=${1:-3}
parts=${PARTS:-fresh warm lmcache routes}
other=${OTHER_LMCACHE:-0.5.5}
here=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
group=
trap 'end_group; rm -rf "$scratch"' EXIT

# Processor seconds of all that a command starts, children of children too, where a control group of our own can be made.
begin_group() {
    group=/sys/fs/cgroup/cpuacct/first-verdict-$$
    [ -d /sys/fs/cgroup/cpuacct ] || group=/sys/fs/cgroup/first-verdict-$$
    mkdir "$group" 2>/dev/null || group=
}
end_group() { [ -z "$group" ] || rmdir "$group" 2>/dev/null || true; }
group_seconds() {
    if [ -z "$group" ]; then
        echo nan
    elif [ -f "$group/cpuacct.usage" ]; then
        awk '{ printf "%.1f", $1 / 1e9 }' "$group/cpuacct.usage"
    else
        awk '/^usage_usec/ { printf "%.1f", $2 / 1e6 }' "$group/cpu.stat"
    fi
}

# measure NAME COMMAND…: appends "wall processor" to NAME's figures.
measure() {
    local name=$1 began log=$scratch/$1.log
    shift
    begin_group
    began=$(date +%s%N)
    (
        [ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs"
        "$@"
    ) >"$log" 2>&1 || { tail -30 "$log" >&2; echo "first-verdict: $name: $* failed" >&2; exit 1; }
    awk -v ns="$(($(date +%s%N) - began))" -v cpu="$(group_seconds)" 'BEGIN { printf "%.1f %s\n", ns / 1e9, cpu }' \
        | tee -a "$scratch/$name.figures" | sed "s/^/$name: /"
    sleep 1
    end_group
}
median() { cut -d' ' -f"$2" "$scratch/$1.figures" | sort -g | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
wants() { [[ " $parts " == *" $1 "* ]]; }
tool() { (cd "$scratch/clone" && ./target/release/kv-correctness "$@"); }

clone() { git clone -q "file://$here" "$scratch/clone"; }
# A home of its own: no crates, no wheels, no cache. The Rust toolchain is the machine's.
fresh() {
    env -u KV_CORRECTNESS_ENV -u KV_CORRECTNESS_CACHE -u XDG_CACHE_HOME -u CARGO_TARGET_DIR -u PIP_CACHE_DIR -u UV_CACHE_DIR \
        HOME="$scratch/home" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" CARGO_HOME="$scratch/home/.cargo" \
        PATH="$PATH" "$@"
}
cargo_run() { cd "$scratch/clone" && exec cargo run --locked --release -- run --device cpu --out "$scratch/out"; }
export -f cargo_run
export scratch

for ((round = 1; round <= rounds; round++)); do
    if wants fresh || [ ! -x "$scratch/clone/target/release/kv-correctness" ]; then
        rm -rf "$scratch/clone" "$scratch/home"
        mkdir -p "$scratch/home/.cargo"
        # Where crates come from is the machine's business.
        cp "${CARGO_HOME:-$HOME/.cargo}"/config* "$scratch/home/.cargo/" 2>/dev/null || true
        clone
        wants fresh && measure fresh fresh bash -c cargo_run
        [ -x "$scratch/clone/target/release/kv-correctness" ] || (cd "$scratch/clone" && cargo build -q --locked --release)
    fi
    export KV_CORRECTNESS_CACHE=$scratch/cache
    if [ -z "${KV_CORRECTNESS_ENV:-}" ]; then
        KV_CORRECTNESS_ENV=$(dirname "$(dirname "$(tool env --device cpu --cache "$scratch/home/.cache/kv-correctness" 2>/dev/null)")")
        export KV_CORRECTNESS_ENV
    fi
    if wants warm || wants lmcache; then
        rm -rf "$scratch/cache"
        measure warm bash -c "cd '$scratch/clone' && exec ./target/release/kv-correctness run --device cpu --out '$scratch/out'"
    fi
    if wants lmcache; then
        # Its wheel is there before: what is measured is the verdict, not the network.
        tool stage baseline --lmcache-version "$other" --device cpu --out "$scratch/stage" >/dev/null 2>&1 || true
        measure lmcache bash -c "cd '$scratch/clone' && exec ./target/release/kv-correctness run --device cpu --lmcache-version '$other' --out '$scratch/out'"
    fi
    if wants routes; then
        rm -rf "$scratch/cache"
        measure routes bash -c "cd '$scratch/clone' && exec ./target/release/kv-correctness run --device cpu --route mp,mp+fs --out '$scratch/out'"
    fi
done

echo
printf '%-10s %10s %12s   (median of %d; %s, %d threads, %s)\n' part 'wall s' 'processor s' "$rounds" \
    "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)" "$(nproc)" "$(git -C "$here" rev-parse --short HEAD)"
for part in $parts; do
    printf '%-10s %10s %12s\n' "$part" "$(median "$part" 1)" "$(median "$part" 2)"
done
