# What NixOS makes of the settings that docs/builders.md shows: { tree, shown } with the tree of nixpkgs and the settings as a list of
# modules. Each option must be one of nixpkgs' own, and takes its value by its own type. A slim tree lacks some modules,
# so definitions that nixpkgs' modules make for each other are not checked; those that are shown are.
{ tree, shown }:
let
  modules = import (tree + "/nixos/modules/module-list.nix") ++ [
    (tree + "/nixos/modules/programs/nix-required-mounts.nix")
  ];
  # Leaf packages beside the driver, which a slim tree lacks.
  absent =
    final: previous:
    builtins.listToAttrs (
      map
        (name: {
          inherit name;
          value = previous.${name} or final.emptyDirectory;
        })
        [
          "egl-gbm"
          "egl-wayland"
          "egl-wayland2"
          "egl-x11"
        ]
    );
  evaluated = import (tree + "/nixos/lib/eval-config.nix") {
    system = "x86_64-linux";
    baseModules = modules;
    modules = shown ++ [
      (
        { pkgs, ... }:
        {
          _module.check = false;
          system.stateVersion = "26.05";
          nixpkgs.overlays = [ absent ];
          # The driver belongs to a kernel, and neither is asked for here.
          hardware.nvidia.package = pkgs.emptyDirectory // {
            version = "595.0";
            open = pkgs.emptyDirectory;
            firmware = pkgs.emptyDirectory;
          };
        }
      )
    ];
  };
  inherit (evaluated.pkgs) lib;
  # Names that are no option, and values that their option does not take.
  unknown =
    path: options: settings:
    if lib.isOption options then
      (if (builtins.tryEval (builtins.seq options.value true)).success then [ ] else [ path ])
    else
      builtins.concatMap (
        name:
        let
          here = path ++ [ name ];
        in
        if options ? ${name} then unknown here options.${name} settings.${name} else [ here ]
      ) (builtins.attrNames settings);
  faults = builtins.concatMap (unknown [ ] evaluated.options) shown;
  inherit (evaluated.config) nix environment;
in
{
  unknown = map (builtins.concatStringsSep ".") faults;
  features = nix.settings.system-features;
  hook = lib.optionalString (nix.settings ? pre-build-hook) nix.settings.pre-build-hook;
  machines = lib.optionalString (nix.buildMachines != [ ]) environment.etc."nix/machines".text;
  # What NixOS itself refuses of the driver's settings.
  refused = map (each: each.message) (
    builtins.filter (each: !each.assertion) (
      builtins.concatMap (definition: definition.value) (
        builtins.filter (
          definition: lib.hasSuffix "hardware/video/nvidia.nix" definition.file
        ) evaluated.options.assertions.definitionsWithLocations
      )
    )
  );
}
