# The apps that run the driver: they look at the command, then realise the environments that the device asks for, then hand
# over. Sourced by an app, which sets the derivations *_baseline, *_lmcache, cuda_home and dataset.
# shellcheck shell=bash

# Arguments of `run`, unless another of the driver's commands, its help or its version is asked for.
case ${1-} in
  -h | --help | -V | --version) exec kv-correctness "$@" ;;
  '' | -*) set -- run "$@" ;;
esac
command=$1
case $command in
  run | stage | explain | bisect | reproduce | env) ;;
  *) exec kv-correctness "$@" ;;
esac
for argument in "$@"; do
  case $argument in
    -h | --help) exec kv-correctness "$@" ;;
  esac
done
# Help that stands behind all arguments is printed if they can be read, and it needs nothing: a mistake ends here, before
# gigabytes are built.
if ! kv-correctness "$@" --help >/dev/null 2>&1; then exec kv-correctness "$@"; fi

device=auto suite='' data=no previous=''
cache=${KV_CORRECTNESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kv-correctness}
for argument in "$@"; do
  case $previous in
    --device) device=$argument ;;
    --suite) suite=$argument ;;
    --cache) cache=$argument ;;
  esac
  case $argument in
    --device=*) device=${argument#*=} ;;
    --suite=*) suite=${argument#*=} ;;
    --cache=*) cache=${argument#*=} ;;
    --data | --data=*) data=yes ;;
  esac
  previous=$argument
done
if [ "$device" = auto ]; then
  if has_gpu "${KV_CORRECTNESS_ROOT:-/}"; then device=cuda; else device=cpu; fi
fi

# realise NAME DERIVATION: builds or fetches it with Nix's own progress, keeps it from garbage collection by a root in the
# cache folder, and prints its path
realise() {
  local root=$cache/nix/$1
  command -v nix-store >/dev/null || { echo "correctness: nix-store is not on PATH" >&2; return 2; }
  mkdir -p "$cache/nix"
  nix-store --realise --indirect --add-root "$root" "$2" >/dev/null || {
    echo "correctness: failed to realise $1 ($2)" >&2
    echo "hint: the log above names the builder that failed; nix log shows all of it" >&2
    return 2
  }
  readlink -f "$root"
}

# asks_mmlu SUITE: whether a suite, an embedded one or a file, asks the dataset that the flake pins
asks_mmlu() {
  { kv-correctness suite show "$1" 2>/dev/null || cat "$1" 2>/dev/null; } | grep '^dataset *= *"mmlu"' >/dev/null
}

if [ "$device" = cuda ]; then check_libcuda "${KV_CORRECTNESS_ROOT:-/}" || exit 2; fi
case $command in
  run | stage | explain)
    if [ -z "$suite" ] && [ "$device" = cuda ]; then
      # The second model of `mmlu` is spread over two GPUs.
      gpus=(/proc/driver/nvidia/gpus/*)
      if [ "${#gpus[@]}" -ge 2 ]; then suite=mmlu; else suite=canary; fi
      set -- "$@" --suite "$suite"
    fi
    ;;
esac
case $command in
  run | stage | explain | bisect)
    if [ "$data" = no ] && [ -n "$suite" ] && asks_mmlu "$suite"; then
      archive=$(realise dataset "${dataset:?}") || exit 2
      set -- "$@" --data "$archive"
    fi
    ;;
esac
if [ "$device" = cuda ]; then
  use_libcuda "${KV_CORRECTNESS_ROOT:-/}" "$cache/nix"
  lmcache=${cuda_lmcache:?} baseline=${cuda_baseline:?}
  CUDA_HOME=$(realise cuda-home "${cuda_home:?}") || exit 2
  export CUDA_HOME PATH=$CUDA_HOME/bin:$PATH # FlashInfer compiles with nvcc
else
  lmcache=${cpu_lmcache:?} baseline=${cpu_baseline:?}
fi
KV_CORRECTNESS_ENV=$(realise "env-$device" "$lmcache") || exit 2
KV_CORRECTNESS_ENV_BASELINE=$(realise "env-$device-baseline" "$baseline") || exit 2
export KV_CORRECTNESS_ENV KV_CORRECTNESS_ENV_BASELINE
exec kv-correctness "$@"
