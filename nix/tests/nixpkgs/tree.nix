# The real nixpkgs tree that a test was given, and what a slim tree lacks: nixfmt and shellcheck are Haskell programs, and the
# list of Haskell's packages can be left out of a tree. host.nix is written by the test.
let
  host = import ./host.nix;
in
{
  inherit host;
  tree = builtins.fetchTree {
    type = "path";
    path = host.tree;
    inherit (host) narHash;
  };
}
