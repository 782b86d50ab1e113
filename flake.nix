{
  description = "Proves that KV which passed through LMCache does not change what vLLM answers";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Unset: each stack compiles the release of LMCache that its lock pins. There to be overridden, with any tree of LMCache.
    lmcache = {
      follows = "";
      flake = false;
    };
    # Unset, too: an environment holds the wheel of vLLM. A tree's Python files are laid over it.
    vllm = {
      follows = "";
      flake = false;
    };
  };

  outputs = inputs: import ./nix inputs;
}
