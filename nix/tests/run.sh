#!/usr/bin/env bash
# Tests the flake with the machine's toolchain: nix/tests/run.sh [FOLDER]. FOLDER keeps what is fetched and built (a new one
# each time if left out). nixpkgs, vllm and lmcache are overridden by stand-ins (stub-nixpkgs/README.md says what that
# proves); the environment is the one that the driver makes from nix/stacks/cpu.lock; the engine runs are real.
# Needs root (namespaces, /nix), Debian, cargo, and the driver's release build in the checkout's build folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-$(mktemp -d)}
work=$(mkdir -p "$work" && cd "$work" && pwd)
system=x86_64-linux
fail() { echo "nix: $*" >&2; exit 1; }
step() { printf '\n-- nix: %s (%d s)\n' "$*" "$SECONDS"; }

step "Nix and its linters"
PATH=$(nix/tests/get-nix.sh "$work/nix"):$PATH
CARGO_TARGET_DIR=$work/tools-build cargo install --quiet --debug --root "$work/tools" nixfmt_rs@0.5.3 deadnix@1.3.1
export PATH=$work/tools/bin:$PATH NIX_CONF_DIR=$work
printf '%s\n' "experimental-features = nix-command flakes" "build-users-group =" "substituters =" "flake-registry =" \
  "warn-dirty = false" "sandbox = false" "max-jobs = auto" >"$work/nix.conf"

step "stand-ins"
environment=$(readlink -f "$(dirname "$(cargo run --locked --release --quiet -- env --device cpu)")/..")
site=$(cd "$environment" && echo lib/python3.*/site-packages)
python=$(readlink -f "$environment/bin/python")
uv=$(command -v uv || compgen -G "$environment/../../tools/uv-*/bin/uv" | head -n 1)
uv=$(readlink -f "$uv")
rust_programs=$(dirname "$(command -v cargo)")
cargo_home=${CARGO_HOME:-$HOME/.cargo} rustup_home=${RUSTUP_HOME:-$HOME/.rustup} target=${CARGO_TARGET_DIR:-$PWD/target}
rm -rf "$work/stub" "$work/inputs"
cp -r nix/tests/stub-nixpkgs "$work/stub"
cat >"$work/stub/host.nix" <<HOST
{
  environment = "$environment";
  site = "$site";
  wheels = "${KV_CORRECTNESS_WHEELS:-/nonexistent}";
  python = "$python";
  uv = "$uv";
  nixfmt = "$work/tools/bin/nixfmt";
  deadnix = "$work/tools/bin/deadnix";
  rustPrograms = "$rust_programs";
  cargoHome = "$cargo_home";
  rustupHome = "$rustup_home";
  target = "$target";
}
HOST
inputs=$work/inputs
mkdir -p "$inputs"/release/{vllm,requirements,csrc} "$inputs/lmcache"
echo "torch==2.11.0" >"$inputs/release/requirements/cuda.txt"
echo "one = 1" >"$inputs/release/vllm/one.py"
echo "two = 2" >"$inputs/release/vllm/two.py"
echo "// compiled" >"$inputs/release/csrc/kernel.cu"
for changed in python csrc torch; do cp -r "$inputs/release" "$inputs/$changed"; done
rm "$inputs/python/vllm/one.py"
echo "two = 3" >"$inputs/python/vllm/two.py"
echo "// compiled otherwise" >"$inputs/csrc/csrc/kernel.cu"
echo "torch==2.12.0" >"$inputs/torch/requirements/cuda.txt"
# The LMCache that is installed, as a source tree whose build compiles nothing.
cp -r "$environment/$site/lmcache" "$inputs/lmcache/"
find "$inputs/lmcache" -name __pycache__ -prune -exec rm -r {} +
cp nix/tests/lmcache.toml "$inputs/lmcache/pyproject.toml"
cp -r "$inputs/lmcache" "$inputs/other-lmcache"
echo "# another commit" >>"$inputs/other-lmcache/lmcache/__init__.py"

# with VLLM LMCACHE COMMAND...: nix, with the flake's inputs overridden by these stand-ins
with() {
  local vllm=$1 lmcache=$2 command=("$3")
  shift 3
  case ${command[0]} in
    flake) command+=("$1") && shift ;;
  esac
  nix "${command[@]}" --offline --no-write-lock-file --override-input nixpkgs "path:$work/stub" \
    --override-input vllm "path:$inputs/$vllm" --override-input vllm-release "path:$inputs/release" \
    --override-input lmcache "path:$inputs/$lmcache" "$@"
}
with_stand_ins() { with release lmcache "$@"; }
folders=(/bin /usr /lib /lib64 /etc/alternatives "$target" "$environment" "$work/tools")
for folder in "$cargo_home" "$rustup_home" "$rust_programs" "$(dirname "$uv")" "${python%/bin/*}"; do
  case $folder in /usr | /usr/* | "$cargo_home"/*) ;; *) folders+=("$folder") ;; esac
done
sandbox=(--option sandbox true --option sandbox-fallback false --option sandbox-paths "${folders[*]}")

step "syntax, unused names, format"
mapfile -t files < <(git ls-files '*.nix')
nix-instantiate --parse "${files[@]}" >/dev/null
deadnix --fail "${files[@]}"
with_stand_ins fmt -- --check

step "the attributes of nixpkgs that the flake names"
nix eval --impure --raw --expr "import $PWD/nix/tests/attributes.nix (import $work/stub { system = \"$system\"; })" >"$work/log"
[ ! -s "$work/log" ] || fail "the stand-in for nixpkgs and nix/tests/nixpkgs-attributes.toml differ: $(cat "$work/log")"

step "a lock with a path or without a narHash is refused"
bad='{ nodes = { a.locked = { type = "path"; narHash = ""; }; b.locked.type = "github"; root = { }; }; }'
[ "$(nix eval --expr "import $PWD/nix/lock-problems.nix $bad" --impure)" = '[ "a is a path" "b has no narHash" ]' ] \
  || fail "a bad lock passes"

step "nix flake show"
with_stand_ins flake show
step "nix flake check, in the sandbox"
with_stand_ins flake check "${sandbox[@]}"
step "nix develop"
with_stand_ins develop "${sandbox[@]}" -c cargo --version

step "what the package installs, and nix run .#bisect"
package=$(with_stand_ins build --no-link --print-out-paths "${sandbox[@]}" .#default)
for file in man/man1/kv-correctness.1 man/man1/kv-correctness-run.1 bash-completion/completions/kv-correctness \
  zsh/site-functions/_kv-correctness fish/vendor_completions.d/kv-correctness.fish; do
  [ -s "$package/share/$file" ] || fail "the package lacks $file"
done
status=0
with_stand_ins run .#bisect -- --device cpu >"$work/log" 2>&1 || status=$?
[ "$status" = 2 ] && grep -q -- "--lmcache" "$work/log" || fail "bisect without a range ends with $status: $(cat "$work/log")"

step "environments, in the sandbox"
with_stand_ins build --no-link "${sandbox[@]}" .#env-cpu .#env-cpu-baseline .#stages.cpu.prompts
step "vLLM's tree over its wheel"
installed=$work/installed
rm -rf "$installed" && cp -r "$inputs/release" "$installed" && touch "$installed/vllm/generated.py"
bash nix/vllm-tree.sh "$inputs/release" "$inputs/python" "$installed"
[ "$(cd "$installed/vllm" && cat two.py ./*)" = "two = 3"$'\n'"two = 3" ] || fail "a tree is laid over a wheel wrongly"
bash nix/vllm-tree.sh "$inputs/release" "$inputs/csrc" "$installed" 2>"$work/log" && fail "a change of compiled code passes"
grep -q "Files release/csrc/kernel.cu and commit/csrc/kernel.cu differ" "$work/log" || fail "no reason: $(cat "$work/log")"
derivation() { with "$1" lmcache eval --raw ".#env-baseline.drvPath" 2>"$work/log"; }
[ "$(derivation python)" != "$(derivation release)" ] || fail "another vLLM is the same env-baseline"
derivation torch && fail "another torch passes"
grep -q "the input vllm asks for torch 2.12.0" "$work/log" || fail "no reason: $(cat "$work/log")"

step "the driver's libraries"
bash nix/tests/libcuda.sh
if [ ! -e /proc/driver/nvidia/version ]; then
  status=0
  with_stand_ins run .#correctness -- --device cuda 2>"$work/log" || status=$?
  [ "$status" = 2 ] || fail "a run on a GPU that is not there ends with $status: $(cat "$work/log")"
  grep -q "lacks libcuda.so.1" "$work/log" || fail "what is missing is not named: $(cat "$work/log")"
fi

export KV_CORRECTNESS_CACHE=$work/cache
unset KV_CORRECTNESS_ENV
rm -rf "$work/cache"
run() { # LMCACHE OUT
  with release "$1" run .#correctness -- --suite canary --device cpu --subjects 1 --out "$work/$2" 2>&1 | tee "$work/$2.log"
}
step "the real pipeline, in a network namespace with loopback alone"
export -f with run
export work inputs
# shellcheck disable=SC2016 # the inner shell expands it
unshare --net bash -euo pipefail -c '
  ip link set lo up
  run lmcache out
  tried=$(awk "/^Ip:/ && !n { for (i = 1; i <= NF; i++) if (\$i == \"OutNoRoutes\") n = i; next } /^Ip:/ { print \$n }" /proc/net/snmp)
  [ "$tried" = 0 ] || { echo "nix: something tried to reach another machine, $tried times" >&2; exit 1; }
'
step "again: every stage is re-used"
run lmcache again
grep -q ": done in" "$work/again.log" && fail "a stage ran again"
cmp "$work/out/summary.txt" "$work/again/summary.txt"

step "another LMCache: the stages with it run again, and only those"
run other-lmcache other
"$python" nix/tests/keys.py "$work/cache" "$work/other.log"
step "done"
