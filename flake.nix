{
  description = "Proves that KV which passed through LMCache does not change what vLLM answers";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Unset: each stack compiles the release of LMCache that its lock pins. There to be overridden, with any tree of LMCache.
    lmcache = {
      follows = "";
      flake = false;
    };
    vllm = {
      url = "https://github.com/vllm-project/vllm/archive/refs/tags/v0.24.0.tar.gz";
      flake = false;
    };
    # What the pinned wheel of vLLM was built from: not meant to be overridden.
    vllm-release = {
      url = "https://github.com/vllm-project/vllm/archive/refs/tags/v0.24.0.tar.gz";
      flake = false;
    };
  };

  outputs = inputs: import ./nix inputs;
}
