#!/usr/bin/env bash
# Tests nix/libcuda.sh on made-up machines.
set -euo pipefail
# shellcheck source=nix/libcuda.sh
source "$(dirname "$0")/../libcuda.sh"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
export XDG_CACHE_HOME=$root/cache
unset LD_LIBRARY_PATH
expect() { [ "$1" = "$2" ] || { echo "libcuda: expected $2, found $1" >&2; exit 1; }; }

said=$(check_libcuda "$root" 2>&1) && { echo "libcuda: a machine without a driver passes" >&2; exit 1; }
for name in libcuda.so.1 libnvidia-ml.so.1 libnvidia-ptxjitcompiler.so.1 /dev/nvidiactl /dev/nvidia-uvm; do
  case $said in *"$name"*) ;; *) echo "libcuda: $name is missing and not named" >&2; exit 1 ;; esac
done

mkdir -p "$root"/{dev,usr/lib/x86_64-linux-gnu}
touch "$root/dev/dxg"
said=$(check_libcuda "$root" 2>&1) && { echo "libcuda: WSL passes" >&2; exit 1; }
case $said in *WSL*) ;; *) echo "libcuda: WSL is not named" >&2; exit 1 ;; esac
rm "$root/dev/dxg"
touch "$root"/dev/{nvidiactl,nvidia-uvm} "$root/usr/lib/x86_64-linux-gnu/libc.so.6"
for name in "${libcuda_names[@]}"; do touch "$root/usr/lib/x86_64-linux-gnu/$name"; done
check_libcuda "$root"
use_libcuda "$root"
expect "$LD_LIBRARY_PATH" "$root/cache/kv-correctness/libcuda"
expect "$(find "$LD_LIBRARY_PATH" -type l | wc -l)" 3
expect "$(readlink "$LD_LIBRARY_PATH/libcuda.so.1")" "$root/usr/lib/x86_64-linux-gnu/libcuda.so.1"

mkdir -p "$root/run/opengl-driver/lib"
touch "$root/run/opengl-driver/lib/libcuda.so.1"
unset LD_LIBRARY_PATH
use_libcuda "$root"
expect "$LD_LIBRARY_PATH" "$root/run/opengl-driver/lib"
