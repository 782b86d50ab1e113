# nixpkgs as nothing but the names that the flake uses (names.toml): each is a thing that can be called with
# anything, whose arguments are evaluated to the end. So the flake evaluates within a second and without nixpkgs, and a name
# that is not listed, or is mistyped, is an error. What a name *is* in nixpkgs, `../evaluate` asks the real one.
{
  overlays ? [ ],
  ...
}:
let
  listed = (fromTOML (builtins.readFile ./names.toml)).names;
  lib = import ./lib.nix;

  thing = name: {
    type = "derivation";
    inherit name;
    outPath = "/names/${name}";
    drvPath = "/names/${name}.drv";
    outputs = [ "out" ];
    meta = { };
    overrideAttrs = changes: builtins.deepSeq changes (thing name);
    __functor = _: argument: builtins.deepSeq argument (thing name);
  };
  # The names below a prefix, as a set of sets; each is a thing as well.
  below =
    prefix:
    let
      inside = builtins.filter (name: lib.hasPrefix prefix name) listed;
      rest = name: builtins.substring (builtins.stringLength prefix) (-1) name;
      heads = map (name: builtins.head (builtins.match "([^.]+)[.]?.*" (rest name))) inside;
    in
    builtins.listToAttrs (
      map (head: {
        name = head;
        value = thing "${prefix}${head}" // below "${prefix}${head}.";
      }) heads
    );
  text = builtins.listToAttrs (
    map
      (name: {
        inherit name;
        value = {
          interpreter = "/names/${name}/bin/python";
          sitePackages = "lib/python/site-packages";
        };
      })
      [
        "python311"
        "python312"
      ]
  );
  packages =
    final:
    let
      all = below "";
    in
    all
    // builtins.mapAttrs (name: values: all.${name} // values) text
    // {
      inherit lib;
      callPackage =
        path: arguments:
        let
          function = import path;
        in
        function (builtins.intersectAttrs (builtins.functionArgs function) final // arguments);
    };
  final = builtins.foldl' (
    packages: overlay: packages // overlay final packages
  ) (packages final) overlays;
in
final
