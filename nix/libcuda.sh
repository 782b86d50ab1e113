# Finds the libraries of the machine's NVIDIA driver, which cannot come from the Nix store: they belong to the kernel's
# module. Functions; ROOT is / but in tests.
# shellcheck shell=bash

libcuda_names=(libcuda.so.1 libnvidia-ml.so.1 libnvidia-ptxjitcompiler.so.1)
# What newer drivers' libcuda opens besides, where it is there; the second is named by the driver's version.
libcuda_companions=('libnvidia-nvvm.so.4' 'libnvidia-gpucomp.so.*')
libcuda_folders=(/run/opengl-driver/lib /usr/lib/wsl/lib /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib /usr/local/nvidia/lib64)

# find_libcuda ROOT NAME: the library's path, if it is there
find_libcuda() {
  local root=${1%/} folder
  for folder in "${libcuda_folders[@]}"; do
    if [ -e "$root$folder/$2" ]; then
      echo "$root$folder/$2"
      return
    fi
  done
  return 1
}

# on_wsl ROOT: whether the GPU is Windows', whose driver lies in a folder of its own
on_wsl() { [ -e "${1%/}/dev/dxg" ] && [ -e "${1%/}/usr/lib/wsl/lib/libcuda.so.1" ]; }

# has_gpu ROOT: whether there is a GPU of NVIDIA's
has_gpu() { [ -r "${1%/}/proc/driver/nvidia/version" ] || on_wsl "$1"; }

# check_libcuda ROOT: says everything that a run on a GPU will miss. /dev/nvidia-uvm is no such thing: the first program that
# uses CUDA makes it.
check_libcuda() {
  local root=${1%/} name missing=()
  for name in "${libcuda_names[@]}"; do
    on_wsl "$1" && [ "$name" = libnvidia-ptxjitcompiler.so.1 ] && continue # lies beside Windows' driver
    find_libcuda "$1" "$name" >/dev/null || missing+=("$name")
  done
  on_wsl "$1" || [ -e "$root/dev/nvidiactl" ] || missing+=(/dev/nvidiactl)
  [ "${#missing[@]}" -gt 0 ] || return 0
  echo "correctness: this machine's NVIDIA driver lacks ${missing[*]}" >&2
  echo "hint: install the driver; on NixOS set services.xserver.videoDrivers = [ \"nvidia\" ] and hardware.graphics.enable;" \
    "in a container let the runtime hand in its files; or run with --device cpu" >&2
  return 1
}

# shellcheck disable=SC2329 # one of the apps only looks
# use_libcuda ROOT CACHE: puts these libraries, and nothing beside them, on the search path, and tells Triton where they are: it
# would ask /sbin/ldconfig, which knows nothing of NixOS's driver
use_libcuda() {
  local root=${1%/} folder name beside library
  if [ -e "$root/run/opengl-driver/lib/libcuda.so.1" ]; then
    folder=$root/run/opengl-driver/lib
  elif on_wsl "$1"; then
    folder=$root/usr/lib/wsl/lib # holds Windows' driver and nothing else
  else
    # The machine's whole library folder would bring its C library, too.
    folder=$2/libcuda
    rm -rf "$folder"
    mkdir -p "$folder"
    for name in "${libcuda_names[@]}"; do
      ln -s "$(find_libcuda "$1" "$name")" "$folder/$name"
    done
    beside=$(dirname "$(readlink "$folder/libcuda.so.1")")
    for name in "${libcuda_companions[@]}"; do
      # shellcheck disable=SC2231 # a pattern
      for library in "$beside"/$name; do
        if [ -e "$library" ]; then ln -s "$library" "$folder/"; fi
      done
    done
  fi
  export LD_LIBRARY_PATH=$folder TRITON_LIBCUDA_PATH=$folder
}
