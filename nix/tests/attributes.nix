# Compares the stand-in for nixpkgs with nixpkgs-attributes.toml, where each attribute's place in nixpkgs stands. Returns
# what one has and the other lacks, as text.
pkgs:
let
  listed =
    map (entry: entry.name)
      (builtins.fromTOML (builtins.readFile ./nixpkgs-attributes.toml)).attribute;
  # Sets that hold attributes rather than being a package.
  inside =
    prefix: set:
    map (name: "${prefix}.${name}") (builtins.attrNames (builtins.removeAttrs set [ "mkDerivation" ]));
  nested = [
    "lib"
    "rustPlatform"
    "cudaPackages_13_0"
  ];
  names = builtins.concatMap (
    name: if builtins.elem name nested then inside name pkgs.${name} else [ name ]
  ) (builtins.attrNames pkgs);
  without = less: builtins.filter (name: !(builtins.elem name less));
in
builtins.concatStringsSep " " (
  map (name: "not listed: ${name};") (without listed names)
  ++ map (name: "not used: ${name};") (without names listed)
)
