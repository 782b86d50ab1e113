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
vllm_tree "$work/vllm"
for vllm in /self "$work/vllm"; do
  outputs=$(nix-instantiate --eval nix/tests/names.nix --argstr vllm "$vllm" 2>&1) || fail "$outputs"
  [ "$outputs" -ge 30 ] || fail "only $outputs outputs evaluate"
done

step "a lock with a path or without a narHash is refused"
problems() { nix eval --impure --expr "import $PWD/nix/lock-problems.nix ($1)"; } # LOCK, as Nix
said=$(problems '{ nodes = { a.locked = { type = "path"; narHash = ""; }; b.locked.type = "github"; root = { }; }; }')
[ "$said" = '[ "a is a path" "b has no narHash" ]' ] || fail "a bad lock passes: $said"
good=$(problems "builtins.fromJSON (builtins.readFile $PWD/flake.lock)")
[ "$good" = '[ ]' ] || fail "flake.lock: $good"

step "which LMCache each stack compiles"
nix/tests/lmcache-source.sh "$work/lmcache-source"
step "which pair a chart moves a stack to"
nix/tests/atlas.sh "$work/atlas"
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
