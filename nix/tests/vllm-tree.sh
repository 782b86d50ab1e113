#!/usr/bin/env bash
# Tests nix/vllm-tree.sh on made-up trees: vllm-tree.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf "$1" && mkdir -p "$1"/release/{vllm,csrc,tools}
fail() { echo "vllm-tree: $*" >&2; exit 1; }
echo "one = 1" >"$1/release/vllm/one.py"
echo "two = 2" >"$1/release/vllm/two.py"
echo "// compiled" >"$1/release/csrc/kernel.cu"
echo "rust = 1" >"$1/release/tools/build_rust.py"
echo "profile = 1" >"$1/release/tools/profile.py"
for changed in python csrc configured tools installed; do cp -r "$1/release" "$1/$changed"; done
rm "$1/python/vllm/one.py"
echo "two = 3" >"$1/python/vllm/two.py"
echo "// compiled otherwise" >"$1/csrc/csrc/kernel.cu"
echo "[egg_info]" >"$1/configured/setup.cfg"
echo "profile = 2" >"$1/python/tools/profile.py"
echo "rust = 2" >"$1/tools/tools/build_rust.py"
# What was generated when the release was packed, and when its wheel was built.
mkdir "$1/release/vllm.egg-info"
touch "$1"/release/{PKG-INFO,setup.cfg,vllm.egg-info/SOURCES.txt} "$1"/{release,installed}/vllm/_version.py
touch "$1/installed/vllm/compiled.so"

bash nix/vllm-tree.sh "$1/release" "$1/python" "$1/installed"
[ "$(cd "$1/installed/vllm" && echo *)" = "_version.py compiled.so two.py" ] || fail "wrong files: $(ls "$1/installed/vllm")"
[ "$(cat "$1/installed/vllm/two.py")" = "two = 3" ] || fail "a tree is laid over a wheel wrongly"
refuses() { # FOLDER TREE REASON
  said=$(bash nix/vllm-tree.sh "$1/release" "$1/$2" "$1/installed" 2>&1) && fail "$2 passes"
  grep -qx "$3" <<<"$said" || fail "no reason: $said"
}
refuses "$1" csrc "Files release/csrc/kernel.cu and commit/csrc/kernel.cu differ"
refuses "$1" configured "Files release/setup.cfg and commit/setup.cfg differ"
refuses "$1" tools "Files release/tools/build_rust.py and commit/tools/build_rust.py differ"
