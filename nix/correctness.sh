# The app `correctness`: chooses device, suite and environments, then hands over to the driver. Sourced by the app, which
# sets the derivations *_baseline, *_lmcache and dataset.
# shellcheck shell=bash

# Arguments of `run`, unless another of the driver's commands is named.
case ${1-} in
  '' | -*) set -- run "$@" ;;
esac

device=auto suite='' data=no previous=''
for argument in "$@"; do
  case $previous in
    --device) device=$argument ;;
    --suite) suite=$argument ;;
  esac
  case $argument in
    --device=*) device=${argument#*=} ;;
    --suite=*) suite=${argument#*=} ;;
    --data | --data=*) data=yes ;;
  esac
  previous=$argument
done
if [ "$device" = auto ]; then
  if [ -r /proc/driver/nvidia/version ]; then device=cuda; else device=cpu; fi
fi

realise() {
  command -v nix-store >/dev/null || { echo "correctness: nix-store is not on PATH" >&2; exit 2; }
  nix-store --realise --quiet "$1" || { echo "correctness: $1 cannot be realised" >&2; exit 2; }
}

case $1 in
  run | stage | explain)
    if [ -z "$suite" ] && [ "$device" = cuda ]; then
      # The second model of `mmlu` is spread over two GPUs.
      gpus=(/proc/driver/nvidia/gpus/*)
      if [ "${#gpus[@]}" -ge 2 ]; then suite=mmlu; else suite=canary; fi
      set -- "$@" --suite "$suite"
    fi
    case $suite in
      mmlu | smollm2) [ "$data" = yes ] || set -- "$@" --data "$(realise "${dataset:?}")" ;;
    esac
    ;;
esac
case $1 in
  run | stage | explain | bisect | env)
    if [ "$device" = cuda ]; then
      check_libcuda / || exit 2
      use_libcuda /
      lmcache=${cuda_lmcache:?} baseline=${cuda_baseline:?}
    else
      lmcache=${cpu_lmcache:?} baseline=${cpu_baseline:?}
    fi
    KV_CORRECTNESS_ENV=$(realise "$lmcache")
    KV_CORRECTNESS_ENV_BASELINE=$(realise "$baseline")
    export KV_CORRECTNESS_ENV KV_CORRECTNESS_ENV_BASELINE
    ;;
esac
exec kv-correctness "$@"
