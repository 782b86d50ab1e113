# CUDA's compiler and headers, in the one folder that PyTorch's extension builder, Triton and FlashInfer look for. The release
# is that of the wheels in stacks/cuda.lock.
{ pkgs }:
let
  inherit (pkgs) lib;
  packages = pkgs.cudaPackages_13_0;
  # Headers and libraries lie in outputs of their own, static libraries in one that nothing here links.
  outputs = package: map (output: lib.getOutput output package) (lib.remove "static" package.outputs);
in
{
  inherit packages;
  release = "13.0";
  # What LMCache is compiled for: the GPUs that the wheels serve, or those that nixpkgs itself is told of (its `config.cudaCapabilities`,
  # which this flake leaves unset), since each takes minutes.
  architectures =
    let
      told = pkgs.config.cudaCapabilities or [ ];
    in
    if told == [ ] then "8.0;8.6;8.9;9.0;10.0;12.0+PTX" else builtins.concatStringsSep ";" told;
  home = pkgs.symlinkJoin {
    name = "cuda-home";
    paths = builtins.concatMap outputs [
      packages.cuda_nvcc
      packages.cuda_crt # where CUDA 13 keeps nvcc's own headers
      packages.cuda_cudart
      packages.cuda_nvrtc
      (packages.cccl or packages.cuda_cccl) # renamed in 2026
      packages.libcublas
      packages.libcurand
      packages.libcusolver
      packages.libcusparse
    ];
  };
  # Stands in for the driver's library where a builder only loads what links to it.
  libcudaStub = "${lib.getOutput "stubs" packages.cuda_cudart}/lib/stubs";
}
