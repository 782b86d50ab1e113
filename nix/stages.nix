# The pipeline's stages as derivations: a second door for those who want Nix to schedule, cache and share them. The canary
# suite alone, since other weights lie outside the store. What starts engines asks for a builder with a feature: `cuda` (and
# the driver's files in the sandbox), or nixpkgs' own word for a large machine.
{
  pkgs,
  driver,
  runtime,
  cpu,
  cuda,
  cudaHome,
}:
let
  inherit (pkgs) lib;
  # Of `subjects` many subjects, or of all where it is null.
  stages =
    device: environments: subjects:
    let
      what = "--suite canary --device ${device}${
        lib.optionalString (subjects != null) " --subjects ${toString subjects}"
      }";
      # Each output holds the store so far, which the next stage goes on with.
      stage =
        name: before: needs: command:
        pkgs.runCommand "kv-correctness-${device}-${name}" (runtime.variables // needs) ''
          # What an app has on its PATH, and nothing of the builder's.
          export PATH=${
            lib.makeBinPath ([ driver ] ++ lib.optional (device == "cuda") cudaHome)
          }:${runtime.path}
          # Flags of a build name its output, and compilers' flags are part of an engine's key: no stage would find what another made.
          unset NIX_CFLAGS_COMPILE NIX_LDFLAGS
          export HOME=$TMPDIR KV_CORRECTNESS_CACHE=$TMPDIR/cache
          ${lib.optionalString (before != null) ''
            cp -r ${before}/cache "$KV_CORRECTNESS_CACHE"
            chmod -R u+w "$KV_CORRECTNESS_CACHE"
          ''}
          mkdir -p $out
          ${command}
          rm -rf "$KV_CORRECTNESS_CACHE"/{vllm,vllm-config,xdg}
          cp -r "$KV_CORRECTNESS_CACHE" $out/cache
        '';
      run = name: "kv-correctness stage ${name} ${what} --out $out/artifacts";
      engines = {
        KV_CORRECTNESS_ENV_BASELINE = environments.baseline;
        requiredSystemFeatures = [ "big-parallel" ];
      }
      // lib.optionalAttrs (device == "cuda") {
        requiredSystemFeatures = [ "cuda" ];
        LD_LIBRARY_PATH = "/run/opengl-driver/lib";
        TRITON_LIBCUDA_PATH = "/run/opengl-driver/lib";
        CUDA_HOME = cudaHome;
      };
      with-lmcache = engines // {
        KV_CORRECTNESS_ENV = environments.with-lmcache;
      };
      all = {
        extract = stage "extract" null { } (run "extract");
        prompts = stage "prompts" all.extract { } (run "prompts");
        baseline = stage "baseline" all.prompts engines (run "baseline");
        control = stage "control" all.baseline engines (run "control");
        cached = stage "cached" all.control with-lmcache (run "cached");
        # Succeeds whatever the verdict is, so that a bad one is kept as well; without a verdict it fails.
        report = stage "report" all.cached with-lmcache ''
          status=0
          kv-correctness run ${what} --out $out/report || status=$?
          [ "$status" != 2 ] || exit 1
          echo "$status" > $out/exit-code
        '';
        # Costs nothing, and fails unless the verdict is equivalent.
        verdict = pkgs.runCommand "kv-correctness-${device}-verdict" { } ''
          cat ${all.report}/report/summary.txt
          [ "$(cat ${all.report}/exit-code)" = 0 ] || exit 1
          touch $out
        '';
      };
    in
    all;
in
{
  cpu = stages "cpu" cpu null;
  cuda = stages "cuda" cuda null;
  # One subject: whether a builder can do it at all.
  cpu-short = stages "cpu" cpu 1;
  cuda-short = stages "cuda" cuda 1;
}
