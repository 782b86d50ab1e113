#!/usr/bin/env bash
# Puts Nix 2.26 beside the packages of a Debian machine whose own is older, and upgrades nothing: get-nix.sh FOLDER.
# It is that of Debian 13, from the mirror that this machine's apt already uses. Prints the folder of its programs.
set -euo pipefail
folder=$(mkdir -p "${1:?usage: get-nix.sh FOLDER}" && cd "$1" && pwd)
programs=$folder/bin
if [ -x "$programs/nix" ]; then
  echo "$programs"
  exit
fi
command -v patchelf >/dev/null || apt-get install -y -qq --no-install-recommends patchelf >&2

# shellcheck disable=SC2016 # apt expands it
mirrors=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian')
mirror=$(awk '$2 == "main" { print $1; exit }' <<<"$mirrors")
[ -n "$mirror" ] || { echo "get-nix: apt knows no mirror of Debian: run apt-get update" >&2; exit 2; }

# An apt of its own, which believes that nothing is installed, so that it fetches everything that Nix needs.
state=$folder/apt
mkdir -p "$state"/{lists/partial,archives/partial} "$programs"
: >"$state/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$state/sources.list"
options=(-qq -o "Dir::Etc::SourceList=$state/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$state/lists"
  -o "Dir::State::Status=$state/status" -o "Dir::Cache::Archives=$state/archives" -o Dir::Cache::PkgCache=
  -o Dir::Cache::SrcPkgCache= -o APT::Sandbox::User=root -o Debug::NoLocking=true)
apt-get "${options[@]}" update >&2
apt-get "${options[@]}" install -y --no-install-recommends --download-only nix-bin >/dev/null
for package in "$state"/archives/*.deb; do dpkg-deb -x "$package" "$folder/root"; done

cp "$folder/root/usr/bin/nix" "$programs/nix"
patchelf --set-interpreter "$folder/root/usr/lib64/ld-linux-x86-64.so.2" --force-rpath \
  --set-rpath "$folder/root/usr/lib/x86_64-linux-gnu" "$programs/nix"
for name in nix-store nix-instantiate; do ln -sf nix "$programs/$name"; done
rm -r "$state"
echo "$programs"
