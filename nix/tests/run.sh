#!/usr/bin/env bash
# Tests of the flake that need no nixpkgs, no network but for Nix itself, and no engine: nix/tests/run.sh [FOLDER]. FOLDER
# keeps what is fetched and built (a new one each time if left out). Where KV_CORRECTNESS_NIXPKGS names an unpacked tree of
# nixpkgs, `evaluate` follows; `build` is for those who ask for it (README.md beside the flake's files says what each proves).
# Needs Debian and cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-$(mktemp -d)}
work=$(mkdir -p "$work" && cd "$work" && pwd)
# shellcheck source=nix/tests/nixpkgs/prepare.sh
source nix/tests/nixpkgs/prepare.sh

step "Nix and its linters"
use_nix
step "syntax, unused names, format"
mapfile -t files < <(git ls-files '*.nix')
nix-instantiate --parse "${files[@]}" >/dev/null
deadnix --fail "${files[@]}"
nixfmt --check "${files[@]}"

step "every output, with nixpkgs as nothing but names"
outputs=$(nix-instantiate --eval nix/tests/names.nix 2>&1) || fail "$outputs"
[ "$outputs" -ge 30 ] || fail "only $outputs outputs evaluate"

step "a lock with a path, without a narHash, or of another vLLM is refused"
problems() { # LOCK, as Nix
  nix eval --impure --expr "import $PWD/nix/lock-problems.nix { lock = $1;
    wheels = builtins.fromJSON (builtins.readFile $PWD/nix/stacks/cuda.wheels.json); }"
}
bad='{ nodes = { a.locked = { type = "path"; narHash = ""; }; b.locked.type = "github"; root = { };
  vllm-release.locked = { type = "tarball"; narHash = ""; url = "v0.1.0.tar.gz"; }; }; }'
said=$(problems "$bad")
case $said in
  '[ "a is a path" "b has no narHash" "vllm-release is not v'*', whose wheel is installed" ]') ;;
  *) fail "a bad lock passes: $said" ;;
esac
good=$(problems "builtins.fromJSON (builtins.readFile $PWD/flake.lock)")
[ "$good" = '[ ]' ] || fail "flake.lock: $good"

step "which LMCache each stack compiles"
nix/tests/lmcache-source.sh "$work/lmcache-source"
step "which vLLM the inputs name"
nix/tests/inputs.sh "$work/inputs-of-flake"
step "vLLM's tree over its wheel"
nix/tests/vllm-tree.sh "$work/vllm-tree"
step "the driver's libraries, lscpu, the apps"
nix/tests/libcuda.sh
nix/tests/lscpu.sh
nix/tests/apps.sh

if [ -n "${KV_CORRECTNESS_NIXPKGS:-}" ]; then
  nix/tests/evaluate "$work"
else
  echo "nix: KV_CORRECTNESS_NIXPKGS names no tree of nixpkgs: nix/tests/evaluate is left out"
fi
step "done"
