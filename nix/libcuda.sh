# Finds the libraries of the machine's NVIDIA driver, which cannot come from the Nix store: they belong to the kernel's
# module. Functions; ROOT is / but in tests.
# shellcheck shell=bash

libcuda_names=(libcuda.so.1 libnvidia-ml.so.1 libnvidia-ptxjitcompiler.so.1)

# find_libcuda ROOT NAME: the library's path, if it is there
find_libcuda() {
  local root=${1%/} folder
  for folder in /run/opengl-driver/lib /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib /usr/local/nvidia/lib64 \
    /usr/lib/wsl/lib; do
    if [ -e "$root$folder/$2" ]; then
      echo "$root$folder/$2"
      return
    fi
  done
  return 1
}

# check_libcuda ROOT: says everything that a run on a GPU will miss
check_libcuda() {
  local root=${1%/} name missing=()
  for name in "${libcuda_names[@]}"; do
    find_libcuda "$1" "$name" >/dev/null || missing+=("$name")
  done
  for name in /dev/nvidiactl /dev/nvidia-uvm; do
    [ -e "$root$name" ] || missing+=("$name")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ -e "$root/dev/dxg" ]; then
    echo "correctness: this is WSL, which shows its GPUs by /dev/dxg; this program knows those of the kernel's own driver only" >&2
    echo "hint: run with --device cpu, or boot Linux itself for a GPU" >&2
    return 1
  fi
  echo "correctness: this machine's NVIDIA driver lacks ${missing[*]}" >&2
  echo "hint: install the driver; on NixOS set hardware.graphics.enable; in a container let the runtime hand in its files;" \
    "or run with --device cpu" >&2
  return 1
}

# shellcheck disable=SC2329 # one of the apps only looks
# use_libcuda ROOT: puts these libraries, and nothing beside them, on the search path
use_libcuda() {
  local folder name
  if [ -e "${1%/}/run/opengl-driver/lib/libcuda.so.1" ]; then
    folder=${1%/}/run/opengl-driver/lib
  else
    # The machine's whole library folder would bring its C library, too.
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/kv-correctness/libcuda
    mkdir -p "$folder"
    for name in "${libcuda_names[@]}"; do
      ln -sfn "$(find_libcuda "$1" "$name")" "$folder/$name"
    done
  fi
  export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}
