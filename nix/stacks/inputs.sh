#!/bin/sh
# Makes the flake's inputs name the vLLM whose wheel a stack installs: inputs.sh FLAKE RELEASE [--check]. FLAKE is the folder of
# flake.nix and flake.lock. Exits with 1, and says why, where they still name another.
set -eu
flake=$1 release=$2 mode=${3-}
tag=vllm/archive/refs/tags/v

# others FILE: tags of vLLM that FILE names besides the release's
others() { grep -o "${tag}[^\"]*" "$flake/$1" | grep -vx "$tag${release}[.]tar[.]gz" | sort -u; }

if [ "$mode" != --check ] && [ -n "$(others flake.nix)" ]; then
  sed -i "s|${tag}[^\"]*|$tag$release.tar.gz|" "$flake/flake.nix"
  echo "flake.nix names vLLM $release now" >&2
  if command -v nix >/dev/null; then nix flake lock "$flake"; fi
fi
for file in flake.nix flake.lock; do
  if [ -n "$(others "$file")" ]; then
    echo "$file names $(others "$file"), and the wheel is that of $release" >&2
    if [ "$file" = flake.lock ]; then echo "hint: nix flake lock" >&2; else echo "hint: nix/stacks/update.sh" >&2; fi
    exit 1
  fi
done
