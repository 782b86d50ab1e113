#!/usr/bin/env bash
# Tests nix/stacks/inputs.sh on copies of the flake: inputs.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf "$1" && mkdir -p "$1"/{flake,bin}
cp flake.nix flake.lock "$1/flake/"
fail() { echo "inputs: $*" >&2; exit 1; }
release=$(sed -n 's/^vllm==\([^ ;]*\).*/\1/p' nix/stacks/cuda.lock)

nix/stacks/inputs.sh . "$release" --check || fail "the flake's inputs name another vLLM than nix/stacks/cuda.lock"
said=$(nix/stacks/inputs.sh "$1/flake" 9.8.7 --check 2>&1) && fail "another release passes"
grep -q "flake.nix names vllm/archive/refs/tags/v$release.tar.gz" <<<"$said" || fail "no reason: $said"
cmp -s flake.nix "$1/flake/flake.nix" || fail "--check writes"

printf '#!/bin/sh\nexit 0\n' >"$1/bin/nix" && chmod +x "$1/bin/nix" # no network
said=$(PATH=$1/bin:$PATH nix/stacks/inputs.sh "$1/flake" 9.8.7 2>&1) && fail "a flake.lock that still names the old release passes"
grep -q "hint: nix flake lock" <<<"$said" || fail "no hint: $said"
[ "$(grep -c 'tags/v9.8.7.tar.gz"' "$1/flake/flake.nix")" = 2 ] || fail "flake.nix is not changed"
sed -i "s|tags/v${release}[.]|tags/v9.8.7.|" "$1/flake/flake.lock"
nix/stacks/inputs.sh "$1/flake" 9.8.7 2>/dev/null || fail "inputs that agree do not pass"
