# The Python environments of one stack: vLLM alone (baseline), and LMCache on top of it. LMCache is never part of the
# baseline, so that another LMCache leaves the baseline's store path, and what is keyed by it, as it is.
{
  pkgs,
  stack, # "cpu" or "cuda"
  python,
  lmcache,
  vllm ? null, # a tree to lay over the wheel, which was built from vllm-release
  vllm-release ? null,
}:
let
  inherit (pkgs) lib stdenv;
  onCuda = stack == "cuda";
  site = python.sitePackages;

  wheels = builtins.mapAttrs (
    _: builtins.mapAttrs (import ./wheel.nix { inherit (pkgs) fetchPypi; })
  ) (builtins.fromJSON (builtins.readFile ./stacks/${stack}.wheels.json));
  # The version of a package of the baseline, by the name that its wheel has.
  version =
    name:
    let
      of = file: builtins.match "${name}-([^-]+)-.*" file;
      found = builtins.filter (match: match != null) (map of (builtins.attrNames wheels.vllm));
    in
    builtins.head (builtins.head found);

  links = uses: "mkdir wheels\n" + builtins.concatStringsSep "" (builtins.concatMap linksOf uses);
  linksOf =
    use:
    map (wheel: "ln -s ${wheel.source} wheels/${wheel.file}\n") (builtins.attrValues wheels.${use});

  # Where a package came from, in the form that installers leave behind (PEP 610).
  origin =
    repository: input:
    builtins.toJSON (
      if input ? rev then
        {
          url = repository;
          vcs_info = {
            vcs = "git";
            commit_id = input.rev;
          };
        }
      else
        {
          url = repository;
          archive_info = { };
        }
    );

  common = {
    dontUnpack = true;
    dontStrip = true;
    nativeBuildInputs = [
      pkgs.uv
      pkgs.autoPatchelfHook
    ];
    buildInputs = [
      stdenv.cc.cc.lib
      pkgs.zlib
      pkgs.numactl
    ];
    # libcuda comes from the machine's driver; libraries for other networks than a test has are left out.
    autoPatchelfIgnoreMissingDeps = true;
  };

  changedTree = vllm != null && vllm.narHash != vllm-release.narHash;

  baseline = stdenv.mkDerivation (
    common
    // {
      name = "kv-correctness-env-${stack}-baseline";
      installPhase = ''
        runHook preInstall
        source ${./python-environment.sh}
        ${links [ "vllm" ]}
        make_environment $out ${python.interpreter} ${site}
        install_wheels $out wheels/*.whl
      ''
      + lib.optionalString changedTree ''
        bash ${./vllm-tree.sh} ${vllm-release} ${vllm} $out/${site}
        printf '%s' '${origin "https://github.com/vllm-project/vllm" vllm}' > $(echo $out/${site}/vllm-*.dist-info)/direct_url.json
      ''
      + ''
        finish_environment $out
        runHook postInstall
      '';
    }
  );

  cudaPackages = pkgs.cudaPackages_13_0;
  cudaRelease = "13.0";
  cudaHome = pkgs.symlinkJoin {
    name = "cuda-for-lmcache";
    paths =
      builtins.concatMap
        (package: [
          (lib.getBin package)
          (lib.getLib package)
          (lib.getDev package)
        ])
        [
          cudaPackages.cuda_nvcc
          cudaPackages.cuda_cudart
          (cudaPackages.cccl or cudaPackages.cuda_cccl) # renamed in 2026
          cudaPackages.libcublas
          cudaPackages.libcurand
          cudaPackages.libcusolver
          cudaPackages.libcusparse
        ];
  };

  lmcacheVersion = "0.5.4" + lib.optionalString (lmcache ? shortRev) "+g${lmcache.shortRev}";

  package = (if onCuda then cudaPackages.backendStdenv else stdenv).mkDerivation (
    {
      name = "lmcache-${lmcacheVersion}-${stack}";
      src = lmcache;
      nativeBuildInputs = [ pkgs.uv ];
      SETUPTOOLS_SCM_PRETEND_VERSION_FOR_LMCACHE = lmcacheVersion;
      dontConfigure = true;
      buildPhase = ''
        runHook preBuild
        source ${./python-environment.sh}
        ${links [
          "lmcache"
          "build"
        ]}
        make_environment $TMPDIR/build ${python.interpreter} ${site} ${baseline}
        install_wheels $TMPDIR/build wheels/*.whl
        build_wheel $TMPDIR/build . $out
        runHook postBuild
      '';
      dontInstall = true;
      dontFixup = true;
    }
    // (
      if onCuda then
        {
          BUILD_WITH_CUDA = "1";
          CUDA_HOME = cudaHome;
          TORCH_CUDA_ARCH_LIST = "8.0;8.6;8.9;9.0;10.0;12.0+PTX";
        }
      else
        { NO_GPU_EXT = "1"; }
    )
  );

  with-lmcache = stdenv.mkDerivation (
    common
    // {
      name = "kv-correctness-env-${stack}-lmcache";
      installPhase = ''
        runHook preInstall
        source ${./python-environment.sh}
        ${links [ "lmcache" ]}
        make_environment $out ${python.interpreter} ${site} ${baseline}
        install_wheels $out wheels/*.whl ${package}/*.whl
        printf '%s' '${origin "https://github.com/LMCache/LMCache" lmcache}' > $(echo $out/${site}/lmcache-*.dist-info)/direct_url.json
        finish_environment $out
        runHook postInstall
      '';
    }
  );

  # The torch that a tree of vLLM asks for.
  wantedTorch =
    let
      lines = builtins.filter builtins.isString (
        builtins.split "\n" (builtins.readFile "${vllm}/requirements/cuda.txt")
      );
      found = builtins.filter (match: match != null) (
        map (builtins.match "torch *== *([0-9.]+).*") lines
      );
    in
    if found == [ ] then "an unknown version" else builtins.head (builtins.head found);

  agreed =
    value:
    assert lib.assertMsg (!onCuda || wantedTorch == version "torch")
      "the input vllm asks for torch ${wantedTorch}, and nix/stacks/cuda.lock pins ${version "torch"}: this commit cannot run over the pinned wheels";
    assert lib.assertMsg (!onCuda || lib.hasPrefix "${cudaRelease}." (version "nvidia_cuda_runtime"))
      "nix/stacks/cuda.lock pins CUDA ${version "nvidia_cuda_runtime"}, and LMCache would be compiled with ${cudaRelease}";
    value;
in
{
  baseline = agreed baseline;
  with-lmcache = agreed with-lmcache;
  lmcache = agreed package;
}
