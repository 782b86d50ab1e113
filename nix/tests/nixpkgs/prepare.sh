# What `evaluate` and `build` share: a Nix, the real nixpkgs tree in its store, and the flakes that stand between that tree and
# ours. Sourced, with `work` set to an empty or re-used folder; needs KV_CORRECTNESS_NIXPKGS, the unpacked tree.
# shellcheck shell=bash

fail() { echo "nix: $*" >&2; exit 1; }
step() { printf '\n-- nix: %s (%d s)\n' "$*" "$SECONDS"; }

# use_nix: puts Nix and its linters on PATH; those that KV_CORRECTNESS_NIX_TOOLS names, or such as are fetched
use_nix() {
  local programs tools=${KV_CORRECTNESS_NIX_TOOLS:-$work/tools}
  programs=$(nix/tests/get-nix.sh "${KV_CORRECTNESS_NIX:-$work/nix}")
  if [ ! -x "$tools/bin/deadnix" ] || [ ! -x "$tools/bin/nixfmt" ]; then
    CARGO_TARGET_DIR=$work/tools-build cargo install --quiet --debug --root "$tools" nixfmt_rs@0.5.3 deadnix@1.3.1
  fi
  export PATH=$tools/bin:$programs:$PATH NIX_CONF_DIR=$work
  printf '%s\n' "experimental-features = nix-command flakes" "build-users-group =" "substituters =" "flake-registry =" \
    "warn-dirty = false" "sandbox = false" "max-jobs = 1" >"$work/nix.conf"
}

# stand_between NAME: a flake in the store that is nixpkgs as nix/tests/nixpkgs/NAME.nix changes it; prints its path
stand_between() {
  local folder=$work/$1
  rm -rf "$folder"
  mkdir -p "$folder"
  cp nix/tests/nixpkgs/{tree,links,cuda-wheels}.nix nix/tests/nixpkgs/cuda.wheels.json nix/wheel.nix "$folder/"
  cp "nix/tests/nixpkgs/$1.nix" "$folder/default.nix"
  cp "$work/host.nix" "$folder/"
  echo '{ outputs = _: { }; }' >"$folder/flake.nix"
  nix store add --name source "$folder"
}

# add_tree: the tree's path in the store, added once, and its digest, as lines of host.nix
add_tree() {
  local tree=${KV_CORRECTNESS_NIXPKGS:?names the unpacked tree of nixpkgs} stored
  [ -f "$tree/pkgs/stdenv/native/default.nix" ] || fail "$tree is no tree of nixpkgs"
  stored=$(cat "$work/tree" 2>/dev/null) || true
  if [ ! -e "${stored:-/nonexistent}" ]; then
    stored=$(nix store add --name source "$tree") # of any other name, fetchTree would copy it once more
    echo "$stored" >"$work/tree"
  fi
  printf '  tree = "%s";\n  narHash = "%s";\n' "$stored" "$(nix hash path "$stored")"
}

# vllm_tree FOLDER: a tree of vLLM that asks for the torch which the stack pins
vllm_tree() {
  mkdir -p "$1"/{requirements,vllm}
  sed -n 's/^\(torch==[^ ;]*\).*/\1/p' nix/stacks/cuda.lock >"$1/requirements/cuda.txt"
  echo "one = 1" >"$1/vllm/one.py"
}
