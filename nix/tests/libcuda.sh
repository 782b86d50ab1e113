#!/usr/bin/env bash
# Tests nix/libcuda.sh on made-up machines.
set -euo pipefail
# shellcheck source=nix/libcuda.sh
source "$(dirname "$0")/../libcuda.sh"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
cache=$root/cache
fail() { echo "libcuda: $*" >&2; exit 1; }
expect() { [ "$1" = "$2" ] || fail "expected $2, found $1"; }

has_gpu "$root" && fail "a machine without a GPU has one"
said=$(check_libcuda "$root" 2>&1) && fail "a machine without a driver passes"
for name in libcuda.so.1 libnvidia-ml.so.1 libnvidia-ptxjitcompiler.so.1 /dev/nvidiactl services.xserver.videoDrivers; do
  case $said in *"$name"*) ;; *) fail "$name is missing and not named" ;; esac
done

# Debian, before a first program used CUDA: no /dev/nvidia-uvm. The user's own search path is not kept.
folder=$root/usr/lib/x86_64-linux-gnu
mkdir -p "$root/dev" "$root/proc/driver/nvidia" "$folder"
touch "$root/dev/nvidiactl" "$root/proc/driver/nvidia/version" "$folder/libc.so.6"
for name in "${libcuda_names[@]}"; do touch "$folder/$name"; done
has_gpu "$root" || fail "a GPU is not seen"
check_libcuda "$root" || fail "a machine before its first use of CUDA is refused"
LD_LIBRARY_PATH=/home/me/lib
use_libcuda "$root" "$cache"
expect "$LD_LIBRARY_PATH" "$cache/libcuda"
expect "$TRITON_LIBCUDA_PATH" "$cache/libcuda"
expect "$(find "$LD_LIBRARY_PATH" -type l | wc -l)" 3
expect "$(readlink "$LD_LIBRARY_PATH/libcuda.so.1")" "$folder/libcuda.so.1"

# What driver 580's libcuda opens besides.
touch "$folder"/{libnvidia-nvvm.so.4,libnvidia-gpucomp.so.580.159.04}
use_libcuda "$root" "$cache"
expect "$(find "$LD_LIBRARY_PATH" -type l | wc -l)" 5
[ -e "$LD_LIBRARY_PATH/libnvidia-gpucomp.so.580.159.04" ] || fail "a companion of libcuda is left out"

# NixOS: the driver's own folder.
mkdir -p "$root/run/opengl-driver/lib"
touch "$root/run/opengl-driver/lib/libcuda.so.1"
use_libcuda "$root" "$cache"
expect "$LD_LIBRARY_PATH" "$root/run/opengl-driver/lib"

# WSL: no kernel module of NVIDIA's, and Windows' driver in a folder of its own.
wsl=$root/wsl
mkdir -p "$wsl/dev" "$wsl/usr/lib/wsl/lib"
touch "$wsl/dev/dxg" "$wsl/usr/lib/wsl/lib/"{libcuda.so.1,libnvidia-ml.so.1}
has_gpu "$wsl" || fail "a GPU under WSL is not seen"
check_libcuda "$wsl" || fail "WSL does not pass"
use_libcuda "$wsl" "$cache"
expect "$LD_LIBRARY_PATH" "$wsl/usr/lib/wsl/lib"
