#!/bin/sh
# A stand-in for uv, as far as packages on top of an environment need it. A source tree is "built" by copying its file
# `faults`, unless setup.py holds the word broken; of releases, those from 2.0 on have the fault bit@load, and 1.5 is none.
for last in "$@"; do :; done
target=
while [ $# -gt 1 ]; do
  [ "$1" != --target ] || target=$2
  shift
done
[ -n "$target" ] || exit 0
mkdir -p "$target"

# package VERSION FAULTS
package() {
  mkdir -p "$target/lmcache-$1.dist-info"
  echo "lmcache/__init__.py,sha256=$1,1" >"$target/lmcache-$1.dist-info/RECORD"
  echo "$2" >"$target/faults"
  echo "install $1" >>"$FAKE_LOG"
}

case $last in
  lmcache==1.5)
    printf 'error: No solution found when resolving dependencies\ncause: Because there is no version of lmcache==1.5\n' >&2
    exit 1
    ;;
  lmcache==2.*) package "${last#*==}" bit@load ;;
  lmcache==*) package "${last#*==}" "" ;;
  *.txt) ;;
  *)
    if grep -q broken "$last/setup.py"; then
      printf '  × Failed to build `lmcache`\n  File "setup.py", line 1\nSyntaxError: this tree is broken\n' >&2
      exit 1
    fi
    package "$SETUPTOOLS_SCM_PRETEND_VERSION" "$(cat "$last/faults")"
    ;;
esac
