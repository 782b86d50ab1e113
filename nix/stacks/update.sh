#!/bin/sh
# Compiles the locks of the stacks from what is asked for in *.in and *.overrides.
#
#   nix/stacks/update.sh              re-make the locks; versions that still fit are kept
#   nix/stacks/update.sh --upgrade    re-make them with the newest versions that fit
#   nix/stacks/update.sh --check      change nothing; exit 1 and say so when a lock is stale
#
# Needs uv and a package index. A lock holds names, versions and hashes, and no address.
set -eu
cd "$(dirname "$0")"

mode=${1-}
case $mode in
  '' | --upgrade | --check) ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
command -v uv >/dev/null || { echo "update.sh needs uv on PATH (pip install -r nix/stacks/uv.txt)" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stale=0

# compile STACK PYTHON [OPTION]...: the requirements for one Python on x86-64 Linux, to stdout
compile() {
  stack=$1 python=$2
  shift 2
  overrides=
  if [ -f "$stack.overrides" ]; then overrides="--overrides $stack.overrides"; fi
  # shellcheck disable=SC2086 # no overrides, no words
  uv pip compile "$stack.in" $overrides --python-version "$python" --python-platform x86_64-unknown-linux-gnu \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet "$@"
}

# update STACK LOCK PYTHON [OPTION]...: makes or checks one lock
update() {
  stack=$1 lock=$2 python=$3
  shift 3
  if [ "$mode" = --upgrade ] || [ ! -f "$lock" ]; then : >"$work/$lock"; else cp "$lock" "$work/$lock"; fi
  compile "$stack" "$python" --generate-hashes --output-file "$work/$lock" "$@" >/dev/null
  if grep -n '://' "$work/$lock"; then
    echo "$lock: an address got into the lock" >&2
    exit 1
  fi
  if cmp -s "$lock" "$work/$lock"; then
    echo "$lock is up to date" >&2
  elif [ "$mode" = --check ]; then
    echo "$lock is stale: run nix/stacks/update.sh" >&2
    stale=1
  else
    cp "$work/$lock" "$lock"
    echo "$lock was re-made" >&2
  fi
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

update cpu cpu.lock 3.11
serves cpu cpu.lock 3.12
serves cpu cpu.lock 3.13
update cuda cuda.lock 3.12
serves cuda cuda.lock 3.13
update uv uv.txt 3.11
update lint lint.txt 3.11
update convert convert.txt 3.11 --no-deps
update build build.txt 3.11
exit $stale
