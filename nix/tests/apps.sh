#!/usr/bin/env bash
# Tests nix/correctness.sh, what the apps run, with programs that only say how they were called in place of Nix and the driver.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "apps: $*" >&2; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/store" "$root/machine"
cat >"$root/bin/nix-store" <<'PROGRAM'
#!/usr/bin/env bash
echo "realise $*" >>"$LOG"
case "$*" in *"${FAILING:-nothing}"*) exit 1 ;; esac
while [ "$1" != --add-root ]; do shift; done
mkdir -p "$STORE/$(basename "$2")" && ln -sfn "$STORE/$(basename "$2")" "$2" && echo "$2"
PROGRAM
cat >"$root/bin/kv-correctness" <<'PROGRAM'
#!/usr/bin/env bash
case "$*" in *nonsense*) exit 2 ;; esac # as clap would
case "$*" in *" --help") exit 0 ;; esac
case "$1 $2" in "suite show") cat "$SUITES/$3.toml"; exit ;; esac
echo "driver $* env=${KV_CORRECTNESS_ENV-none} baseline=${KV_CORRECTNESS_ENV_BASELINE-none}" >>"$LOG"
PROGRAM
chmod +x "$root"/bin/*
export LOG=$root/log STORE=$root/store SUITES=$PWD/../data/suites
# app ARGUMENT...: what the app did, in LOG; its status in `status`
app() {
  : >"$LOG"
  status=0
  env -u KV_CORRECTNESS_ENV -u KV_CORRECTNESS_ENV_BASELINE PATH="$root/bin:$PATH" KV_CORRECTNESS_CACHE="$root/cache" \
    KV_CORRECTNESS_ROOT="$root/machine" \
    cpu_baseline=/d/cpu-baseline.drv cpu_lmcache=/d/cpu.drv cuda_baseline=/d/cuda-baseline.drv cuda_lmcache=/d/cuda.drv \
    cuda_home=/d/cuda-home.drv dataset=/d/dataset.drv \
    bash -euo pipefail -c 'source ./libcuda.sh; source ./correctness.sh' app "$@" 2>"$root/error" || status=$?
}
realised() { grep -c '^realise' "$LOG" || true; }
ran() { grep '^driver' "$LOG" || true; }
with="env=$root/store/env-cpu baseline=$root/store/env-cpu-baseline"

for nothing in --help -V --version "run --help" ls "gc --dry-run" "fetch --suite mmlu" "suite check mine.toml"; do
  # shellcheck disable=SC2086 # words
  app $nothing
  [ "$(realised)" = 0 ] || fail "$nothing realises something"
done
app --cache "$root/x" nonsense
[ "$status:$(realised)" = 2:0 ] || fail "a mistake is found only after something was realised: $status"

app
[ "$(ran)" = "driver run $with" ] || fail "without arguments: $(ran) $(cat "$root/error")"
for command in "explain baseline" "reproduce report.json" "bisect --lmcache a..b" "stage baseline" "run --device cpu" env; do
  # shellcheck disable=SC2086 # words
  app $command
  [ "$(ran)" = "driver $command $with" ] || fail "$command: $(ran) $(cat "$root/error")"
done
app run --cache "$root/other"
[ "$(readlink "$root/other/nix/env-cpu")" = "$root/store/env-cpu" ] || fail "no root in the cache folder that is named"

data="--data $root/store/dataset"
for suite in "$SUITES"/*.toml; do
  name=$(basename "$suite" .toml)
  wanted=''
  if grep -q '^dataset = "mmlu"' "$suite"; then wanted=" $data"; fi
  app run --suite "$name"
  [ "$(ran)" = "driver run --suite $name$wanted $with" ] || fail "$name, not with its dataset: $(ran)"
done
app run --suite "$SUITES/qwen.toml"
[ "$(ran)" = "driver run --suite $SUITES/qwen.toml $data $with" ] || fail "a suite's file, not with its dataset: $(ran)"
app bisect --suite=smollm2 --lmcache a..b
[ "$(ran)" = "driver bisect --suite=smollm2 --lmcache a..b $data $with" ] || fail "bisect without the dataset: $(ran)"
app run --suite qwen --data mine.tar
[ "$(ran)" = "driver run --suite qwen --data mine.tar $with" ] || fail "another archive is not taken: $(ran)"
FAILING=dataset app run --suite smollm2
[ "$status:$(ran)" = 2: ] || fail "a run without its dataset goes on: $status $(ran)"
FAILING=cpu-baseline.drv app run
[ "$status:$(ran)" = 2: ] || fail "a run without its baseline goes on: $status $(ran)"
grep -q "failed to realise env-cpu-baseline" "$root/error" || fail "no reason: $(cat "$root/error")"

app run --device cuda
[ "$status:$(realised)" = 2:0 ] || fail "a GPU that is not there: $status, $(realised) realised"
mkdir -p "$root/machine/dev" "$root/machine/proc/driver/nvidia" "$root/machine/usr/lib64"
touch "$root/machine/dev/nvidiactl" "$root/machine/proc/driver/nvidia/version"
for name in libcuda.so.1 libnvidia-ml.so.1 libnvidia-ptxjitcompiler.so.1; do touch "$root/machine/usr/lib64/$name"; done
app run --suite canary
[ "$(ran)" = "driver run --suite canary env=$root/store/env-cuda baseline=$root/store/env-cuda-baseline" ] || fail "GPU: $(ran)"
grep -q "cuda-home.drv" "$LOG" || fail "nvcc is not realised for a GPU"
