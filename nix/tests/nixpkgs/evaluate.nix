# nixpkgs as `nix/tests/evaluate` sees it: the real tree and its own stdenv. A slim tree lacks the list of Haskell's packages, of
# which the flake's closure needs two programs, and the files of users that dockerTools hands out: empty derivations take their
# place. Taken by flake.nix in place of nixpkgs.
arguments:
let
  inherit (import ./tree.nix) tree;
  absent =
    final: previous:
    let
      program =
        name:
        final.runCommand name {
          meta.mainProgram = name;
          passthru.compiler.bootstrapAvailable = true;
        } "mkdir $out";
    in
    {
      nixfmt = program "nixfmt";
      shellcheck = program "shellcheck";
      shellcheck-minimal = program "shellcheck";
      fakeNss = previous.fakeNss or final.emptyDirectory; # dockerTools names it; no image of the flake takes it
    };
in
import tree (
  arguments
  // {
    overlays = [ absent ] ++ arguments.overlays or [ ];
  }
)
