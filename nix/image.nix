# A container image in layers: the driver, which holds the worker, one stack's environments, and what engines call at run time.
# The NVIDIA driver is the container runtime's to bring.
{
  pkgs,
  driver,
  runtime,
  environments,
  cudaHome ? null,
}:
let
  inherit (pkgs) lib;
  driverLibraries = "/usr/lib/x86_64-linux-gnu:/usr/lib64"; # where NVIDIA's container runtime puts libcuda.so.1
  variables =
    runtime.variables
    // {
      PATH = "${
        lib.makeBinPath ([ driver ] ++ lib.optional (cudaHome != null) cudaHome)
      }:${runtime.path}";
      HOME = "/var/lib/kv-correctness";
      KV_CORRECTNESS_CACHE = "/var/lib/kv-correctness/cache";
      KV_CORRECTNESS_ENV = environments.with-lmcache;
      KV_CORRECTNESS_ENV_BASELINE = environments.baseline;
      SSL_CERT_FILE = "/etc/ssl/certs/ca-bundle.crt";
    }
    // lib.optionalAttrs (cudaHome != null) {
      CUDA_HOME = cudaHome;
      LD_LIBRARY_PATH = driverLibraries;
      NVIDIA_VISIBLE_DEVICES = "all";
      NVIDIA_DRIVER_CAPABILITIES = "compute,utility";
    };
in
pkgs.dockerTools.buildLayeredImage {
  name = "kv-correctness";
  tag = (fromTOML (builtins.readFile ../Cargo.toml)).package.version;
  contents = [
    driver
    pkgs.bash
    pkgs.coreutils
    pkgs.dockerTools.binSh
    pkgs.dockerTools.caCertificates
  ];
  extraCommands = ''
    mkdir -p var/lib/kv-correctness
    mkdir -m 1777 tmp
  ''
  # Triton asks it where libcuda is before it looks at LD_LIBRARY_PATH, and ends where there is none.
  + lib.optionalString (cudaHome != null) ''
    mkdir -p sbin
    printf '#!/bin/sh\n' > sbin/ldconfig
    chmod +x sbin/ldconfig
  '';
  config = {
    Entrypoint = [ (lib.getExe' driver "kv-correctness") ];
    Env = map (name: "${name}=${variables.${name}}") (builtins.attrNames variables);
    WorkingDir = "/var/lib/kv-correctness";
  };
}
