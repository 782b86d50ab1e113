#!/usr/bin/env bash
# Tests nix/lmcache-source.nix, and that lists, locks and what is asked for name one LMCache a stack: lmcache-source.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf "$1" && mkdir -p "$1"/{release,git}
printf 'Metadata-Version: 2.4\nName: lmcache\nVersion: 9.8.7\n' >"$1/release/PKG-INFO"
version() { # TREE, as Nix: the version that it is given
  nix eval --impure --raw --expr "(import ./nix/lmcache-source.nix { tree = $1; release = import ./nix/release.nix {
    fetchPypi = _: \"\"; sources = (builtins.fromJSON (builtins.readFile ./nix/stacks/$2.wheels.json)).source; } \"lmcache\"; }).version"
}
expect() { [ "$1" = "$2" ] || { echo "lmcache-source: expected $2, found $1" >&2; exit 1; }; }

expect "$(version "{ outPath = \"$1/release\"; shortRev = \"abc1234\"; }" cpu)" 9.8.7
expect "$(version "{ outPath = \"$1/git\"; shortRev = \"abc1234\"; }" cpu)" 0+gabc1234
expect "$(version "{ outPath = \"$1/git\"; }" cpu)" 0+unknown
for stack in cpu cuda; do
  released=$(version null "$stack")
  for list in "nix/stacks/$stack.in" "nix/stacks/$stack.lock"; do
    grep -q "^lmcache==$released\( \|$\)" "$list" || { echo "lmcache-source: $list pins another than $released" >&2; exit 1; }
  done
  digest=$(grep -o "\"lmcache-$released.tar.gz\": \"[0-9a-f]*" "nix/stacks/$stack.wheels.json" | grep -o '[0-9a-f]*$')
  grep -q "sha256:$digest" "nix/stacks/$stack.lock" \
    || { echo "lmcache-source: $stack.lock does not hold the digest of $released" >&2; exit 1; }
done
