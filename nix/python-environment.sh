# Functions of the derivations that make Python environments; sourced by them.
# shellcheck shell=bash

# make_environment FOLDER PYTHON SITE [BASELINE]: an empty environment; with BASELINE, one that sees what that holds.
make_environment() {
  export HOME=$TMPDIR UV_CACHE_DIR=$1/.uv UV_OFFLINE=1 UV_PYTHON_DOWNLOADS=never PYTHONHASHSEED=0
  site=$1/$3
  "$2" -m venv --without-pip "$1"
  if [ $# -ge 4 ]; then
    baseline=$4/$3
    # The path as such, which the driver reads as well, and the .pth files that lie there.
    printf '%s\nimport site; site.addsitedir("%s")\n' "$baseline" "$baseline" > "$site/baseline.pth"
  fi
}

# install_wheels FOLDER WHEEL...: as they are, and nothing that they depend on
install_wheels() {
  local folder=$1
  shift
  uv pip install --quiet --no-index --no-deps --link-mode hardlink --python "$folder/bin/python" "$@"
  # Where a wheel lay and when it was written is the builder's business: two builds would differ.
  local noted
  for noted in "$site"/*.dist-info; do
    rm -f "$noted"/{uv_cache,direct_url}.json
    sed -i -E '/\.dist-info\/(uv_cache|direct_url)\.json,/d' "$noted/RECORD"
  done
}

# build_wheel FOLDER SOURCE OUTPUT: builds a package with what is installed in FOLDER
build_wheel() {
  PATH=$1/bin:${baseline%/lib/*}/bin:$PATH uv build --quiet --wheel --no-build-isolation --no-index \
    --python "$1/bin/python" --out-dir "$3" "$2"
  rm -f "$3/.gitignore"
}

# finish_environment FOLDER: compiles modules, since nothing can be written beside them later on
finish_environment() {
  rm -rf "$1/.uv" # of whose files the installed ones were links
  # A few packages hold templates and files of another Python, which do not compile and are never imported.
  "$1/bin/python" -m compileall -q -j "${NIX_BUILD_CORES:-0}" --invalidation-mode unchecked-hash "$site" >/dev/null || true
}

# check_environment FOLDER PROGRAM ARGUMENT...: what must load does, with a stand-in for the driver's library where one is set
check_environment() {
  local python=$1/bin/python
  shift
  HOME=$TMPDIR LD_LIBRARY_PATH=${libcudaStub-} PYTHONDONTWRITEBYTECODE=1 "$python" "$@"
}
