# What `nix flake check` builds. None needs an engine, a GPU or the network.
{
  pkgs,
  driver,
  tools,
}:
let
  problems = import ./lock-problems.nix (builtins.fromJSON (builtins.readFile ../flake.lock));
  # Files whose digest the stack's lock does not hold: the list was not made again after the lock.
  strangers =
    stack:
    let
      lock = builtins.readFile ./stacks/${stack}.lock + builtins.readFile ./stacks/lmcache-build.txt;
      known = builtins.listToAttrs (
        map (match: {
          name = builtins.head match;
          value = null;
        }) (builtins.filter builtins.isList (builtins.split "sha256:([0-9a-f]{64})" lock))
      );
      uses = builtins.fromJSON (builtins.readFile ./stacks/${stack}.wheels.json);
      files = uses.vllm // uses.lmcache // uses.build // uses.source;
    in
    builtins.filter (file: !(known ? ${files.${file}})) (builtins.attrNames files);
  none =
    name: found:
    pkgs.runCommand name { inherit found; } ''
      if [ -n "$found" ]; then echo "${name}: $found" >&2; exit 1; fi
      touch $out
    '';
in
{
  inherit driver;
  tests = (pkgs.callPackage ./package.nix { doCheck = true; }).overrideAttrs {
    cargoTestFlags = [ "--no-fail-fast" ]; # one failure hides no other
    dontBuild = true; # they compile the driver themselves
    installPhase = "mkdir $out";
  };
  lock = none "flake-lock" (builtins.concatStringsSep ", " problems);
  wheels-cpu = none "wheels-not-in-cpu-lock" (toString (strangers "cpu"));
  wheels-cuda = none "wheels-not-in-cuda-lock" (toString (strangers "cuda"));
  nix-files =
    pkgs.runCommand "nix-files"
      {
        nativeBuildInputs = [
          tools.nixfmt
          tools.deadnix
        ];
      }
      ''
        cd ${
          pkgs.lib.fileset.toSource {
            root = ../.;
            fileset = pkgs.lib.fileset.unions [
              ../flake.nix
              (pkgs.lib.fileset.fileFilter (file: file.hasExt "nix") ../nix)
            ];
          }
        }
        find . -name '*.nix' -print0 | xargs -0 nixfmt --check
        deadnix --fail .
        touch $out
      '';
}
