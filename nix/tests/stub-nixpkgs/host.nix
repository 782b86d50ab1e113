# Paths of the machine that a test runs on: nix/tests/run.sh writes its own in a copy of this folder.
throw "nix/tests/run.sh writes host.nix"
