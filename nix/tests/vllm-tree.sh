#!/usr/bin/env bash
# Tests nix/vllm-tree.sh on made-up trees: vllm-tree.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf "$1" && mkdir -p "$1"/release/{vllm,csrc}
fail() { echo "vllm-tree: $*" >&2; exit 1; }
echo "one = 1" >"$1/release/vllm/one.py"
echo "two = 2" >"$1/release/vllm/two.py"
echo "// compiled" >"$1/release/csrc/kernel.cu"
for changed in python csrc installed; do cp -r "$1/release" "$1/$changed"; done
rm "$1/python/vllm/one.py"
echo "two = 3" >"$1/python/vllm/two.py"
echo "// compiled otherwise" >"$1/csrc/csrc/kernel.cu"
touch "$1/installed/vllm/generated.py"

bash nix/vllm-tree.sh "$1/release" "$1/python" "$1/installed"
[ "$(cd "$1/installed/vllm" && cat two.py ./*)" = "two = 3"$'\n'"two = 3" ] || fail "a tree is laid over a wheel wrongly"
said=$(bash nix/vllm-tree.sh "$1/release" "$1/csrc" "$1/installed" 2>&1) && fail "a change of compiled code passes"
grep -q "Files release/csrc/kernel.cu and commit/csrc/kernel.cu differ" <<<"$said" || fail "no reason: $said"
