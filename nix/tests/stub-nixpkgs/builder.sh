# Builds every derivation of the stand-in for nixpkgs: a command, or the phases that the flake gives.
# shellcheck shell=bash disable=SC2154,SC2329 # Nix sets them; phases call it
set -e
export PATH=/usr/local/bin:/usr/bin:/bin HOME=$TMPDIR
for input in $nativeBuildInputs; do PATH=$input/bin:$PATH; done
runHook() { :; }
if [ -n "${buildCommand-}" ]; then
  eval "$buildCommand"
else
  if [ -n "${src-}" ] && [ -z "${dontUnpack-}" ]; then
    cp -r "$src" source
    chmod -R u+w source
    cd source
  fi
  eval "${buildPhase-}"
  [ -n "${dontInstall-}" ] || eval "${installPhase-}"
fi
exit 0 # Nix can miss the status of a shell that became its last command
