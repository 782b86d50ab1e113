{
  description = "Proves that KV which passed through LMCache does not change what vLLM answers";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    lmcache = {
      url = "https://github.com/LMCache/LMCache/archive/refs/tags/v0.5.4.tar.gz";
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
