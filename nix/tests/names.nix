# Evaluates every output of the flake with nixpkgs as nothing but names: see names/default.nix. Returns how many there are.
{
  vllm ? "/self", # a tree of vLLM; by default the input is not set
}:
let
  outputs = import ../. {
    self = outputs // {
      outPath = "/self";
    };
    nixpkgs = ./names;
    lmcache.outPath = "/self"; # not set
    vllm.outPath = vllm;
  };
  drvPaths =
    set:
    builtins.concatMap (
      name:
      let
        value = set.${name};
      in
      if value ? drvPath then
        [ value.drvPath ]
      else if value ? program then
        [ value.program ]
      else
        drvPaths value
    ) (builtins.attrNames set);
  all = drvPaths (
    removeAttrs outputs [
      "overlays"
      "formatter"
    ]
    // {
      inherit (outputs) formatter;
    }
  );
in
builtins.deepSeq all (builtins.length all)
