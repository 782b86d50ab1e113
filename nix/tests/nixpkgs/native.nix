# nixpkgs as `nix/tests/build` sees it: the real tree (its setup scripts, hooks, fetchers, builders) over its own `native` stdenv,
# which takes compiler, shell and coreutils from the machine. What a build would have to download besides is a folder of
# links to the machine's programs and libraries. Taken by flake.nix in place of nixpkgs; the test writes host.nix.
arguments:
let
  inherit (import ./tree.nix) tree host;
  links = import ./links.nix { inherit host; };
in
import (tree + "/pkgs/top-level") (
  removeAttrs arguments [ "system" ]
  // {
    localSystem.system = arguments.system;
    config = (arguments.config or { }) // {
      cudaCapabilities = host.architectures; # one of those that LMCache is compiled for; all take an hour here
      # Downloaded beforehand and served on loopback by file name: wheels, source distributions, crates.
      rewriteURL =
        url:
        let
          crate = builtins.match ".*/crates/([^/]+)/([^/]+)/download" url;
          file = if crate == null then baseNameOf url else "${builtins.concatStringsSep "-" crate}.crate";
        in
        "${host.server}/${file}";
    };
    overlays = [
      links
      (import ./cuda-wheels.nix)
    ]
    ++ arguments.overlays or [ ];
    stdenvStages =
      stage:
      map
        (
          make: previous:
          let
            made = make previous;
          in
          if made ? __raw then
            made
          else
            made
            // {
              stdenv =
                made.stdenv.override (old: {
                  # The wrapper of the machine's compiler names none within; what the flake asks of it is its libraries.
                  cc = old.cc // {
                    cc.lib = previous.compilerLibraries or null;
                    isGNU = true;
                    version = host.compiler; # nvcc takes some, and not others
                  };
                  # Flags that a compiler older than nixpkgs' own does not know.
                  preHook = old.preHook + "export NIX_HARDENING_ENABLE=\n";
                })
                // {
                  inherit (made.stdenv) fetchurl;
                };
            }
        )
        (
          import (tree + "/pkgs/stdenv/native") {
            inherit (stage)
              lib
              localSystem
              crossSystem
              config
              overlays
              ;
          }
        );
  }
)
