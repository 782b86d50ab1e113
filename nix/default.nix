# The flake's outputs. Environments are made by environments.nix, and everything that runs is handed them by path.
{
  self,
  nixpkgs,
  lmcache,
  vllm,
}:
let
  system = "x86_64-linux";
  # An input that is not set follows this flake itself.
  given = input: if input.outPath == self.outPath then null else input;
  pkgs = import nixpkgs {
    inherit system;
    config.allowUnfree = true; # CUDA's compiler and headers, and nothing else
    overlays = [ self.overlays.default ];
  };
  driver = pkgs.kv-correctness;
  cpu = import ./environments.nix {
    inherit pkgs;
    lmcache = given lmcache;
    stack = "cpu";
    python = pkgs.python311;
  };
  cuda = import ./environments.nix {
    inherit pkgs;
    lmcache = given lmcache;
    vllm = given vllm;
    stack = "cuda";
    python = pkgs.python312;
  };
  dataset = import ./dataset.nix { inherit (pkgs) fetchurl; };
  tools = import ./tools.nix { inherit pkgs; };
  runtime = import ./runtime.nix { inherit pkgs; };
  cudaHome = (import ./cuda.nix { inherit pkgs; }).home;
in
{
  overlays.default = final: _: { kv-correctness = final.callPackage ./package.nix { }; };

  packages.${system} = {
    default = driver;
    env-baseline = cuda.baseline;
    env-lmcache = cuda.with-lmcache;
    cuda-home = cudaHome;
    env-cpu-baseline = cpu.baseline;
    env-cpu = cpu.with-lmcache;
    inherit (cuda) lmcache;
    lmcache-cpu = cpu.lmcache;
    inherit dataset;
    image = import ./image.nix {
      inherit
        pkgs
        driver
        runtime
        cudaHome
        ;
      environments = cuda;
    };
    image-cpu = import ./image.nix {
      inherit pkgs driver runtime;
      environments = cpu;
    };
  };

  apps.${system} = import ./apps.nix {
    inherit
      pkgs
      driver
      runtime
      cpu
      cuda
      cudaHome
      dataset
      ;
  };

  checks.${system} = import ./checks.nix { inherit pkgs driver tools; };

  devShells.${system}.default = import ./shell.nix { inherit pkgs tools; };

  formatter.${system} = tools.format;

  legacyPackages.${system}.stages = import ./stages.nix {
    inherit
      pkgs
      driver
      runtime
      cpu
      cuda
      cudaHome
      ;
  };
}
