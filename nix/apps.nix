# What `nix run` starts. An environment takes gigabytes, so none is a dependency of an app: the app knows its derivation
# and realises the one that the device asks for.
{
  pkgs,
  driver,
  runtime,
  cpu,
  cuda,
  cudaHome,
  dataset,
}:
let
  inherit (pkgs) lib;
  # The derivation's path as text; its outputs are not built before the app asks for them.
  later = derivation: builtins.unsafeDiscardOutputDependency derivation.drvPath;
  app =
    {
      name,
      description,
      text,
    }:
    {
      type = "app";
      program = lib.getExe (
        pkgs.writeShellApplication {
          inherit name text;
          runtimeInputs = [ driver ] ++ runtime.programs;
          runtimeEnv = runtime.variables;
          meta = { inherit description; };
        }
      );
      meta = { inherit description; };
    };
  # The driver with the environments that the device asks for; `before` may name a command of its own.
  driving =
    {
      name,
      description,
      before ? "",
    }:
    app {
      inherit name description;
      text = ''
        ${before}
        cpu_baseline=${later cpu.baseline}
        cpu_lmcache=${later cpu.with-lmcache}
        cuda_baseline=${later cuda.baseline}
        cuda_lmcache=${later cuda.with-lmcache}
        cuda_home=${later cudaHome}
        dataset=${later dataset}
        ${builtins.readFile ./libcuda.sh}
        ${builtins.readFile ./correctness.sh}
      '';
    };
  correctness = driving {
    name = "correctness";
    description = "Run the correctness suite that this machine can run, and end with the verdict's exit code";
  };
in
{
  default = correctness;
  inherit correctness;
  bisect = driving {
    name = "bisect";
    description = "Find the first bad revision or release of LMCache or vLLM";
    before = ''set -- bisect "$@"'';
  };
  doctor = app {
    name = "doctor";
    description = "Say what this machine can run, and what is missing";
    text = ''
      ${builtins.readFile ./libcuda.sh}
      status=0
      if has_gpu /; then
        if check_libcuda /; then
          use_libcuda / "''${KV_CORRECTNESS_CACHE:-''${XDG_CACHE_HOME:-$HOME/.cache}/kv-correctness}/nix"
        else
          status=2
        fi
      fi
      kv-correctness doctor "$@" || status=$?
      exit "$status"
    '';
  };
}
