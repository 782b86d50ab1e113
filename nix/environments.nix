# The Python environments of one stack: vLLM alone (baseline), and LMCache on top of it. LMCache is never part of the
# baseline, so that another LMCache leaves the baseline's store path, and what is keyed by it, as it is.
{
  pkgs,
  stack, # "cpu" or "cuda"
  python,
  lmcache, # a tree, or null for the release that the stack's lock pins
  vllm ? null, # a tree to lay over the wheel, or null for the wheel as it is
}:
let
  inherit (pkgs) lib stdenv;
  onCuda = stack == "cuda";
  site = python.sitePackages;
  cuda = import ./cuda.nix { inherit pkgs; };

  pinned = builtins.fromJSON (builtins.readFile ./stacks/${stack}.wheels.json);
  wheels = builtins.mapAttrs (
    _: builtins.mapAttrs (import ./wheel.nix { inherit (pkgs) fetchPypi; })
  ) (removeAttrs pinned [ "source" ]);
  # The version of a package of the baseline, by the name that its wheel has.
  version =
    name:
    let
      of = file: builtins.match "${name}-([^-]+)-.*" file;
      found = builtins.filter (match: match != null) (map of (builtins.attrNames wheels.vllm));
    in
    builtins.head (builtins.head found);

  release = import ./release.nix {
    inherit (pkgs) fetchPypi;
    sources = pinned.source;
  };
  source = import ./lmcache-source.nix {
    tree = lmcache;
    release = release "lmcache";
  };

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
    dontPatchELF = true; # it would drop search paths of the wheels that auto-patchelf is told to keep
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
    autoPatchelfIgnoreMissingDeps = [ "*" ];
    # cuDNN's libraries load one another by name, from the folder that each lies in.
    autoPatchelfFlags = [ "--preserve-origin" ];
    # What does not load must not become a store path.
    doInstallCheck = true;
  }
  // lib.optionalAttrs onCuda { libcudaStub = cuda.libcudaStub; };

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
      + lib.optionalString (vllm != null) ''
        mkdir release
        tar xzf ${(release "vllm").archive} -C release --strip-components=1
        bash ${./vllm-tree.sh} release ${vllm} $out/${site}
        printf '%s' '${origin "https://github.com/vllm-project/vllm" vllm}' > $(echo $out/${site}/vllm-*.dist-info)/direct_url.json
      ''
      + ''
        finish_environment $out
        runHook postInstall
      '';
      installCheckPhase = ''
        source ${./python-environment.sh}
        check_environment $out ${./loads.py} ${stack} baseline
      '';
    }
  );

  package = (if onCuda then cuda.packages.backendStdenv else stdenv).mkDerivation (
    {
      name = "lmcache-${source.version}-${stack}";
      src = source.tree;
      nativeBuildInputs = [ pkgs.uv ];
      SETUPTOOLS_SCM_PRETEND_VERSION_FOR_LMCACHE = source.version;
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
        export MAX_JOBS=$NIX_BUILD_CORES
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
          CUDA_HOME = cuda.home;
          TORCH_CUDA_ARCH_LIST = cuda.architectures;
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
      ''
      # Of a release nothing more is known than its version, and nothing more is needed.
      + lib.optionalString (lmcache != null) ''
        printf '%s' '${origin "https://github.com/LMCache/LMCache" lmcache}' > $(echo $out/${site}/lmcache-*.dist-info)/direct_url.json
      ''
      + ''
        finish_environment $out
        runHook postInstall
      '';
      installCheckPhase = ''
        source ${./python-environment.sh}
        check_environment $out ${./loads.py} ${stack} lmcache
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
    assert lib.assertMsg (vllm == null || wantedTorch == version "torch")
      "the input vllm asks for torch ${wantedTorch}, and nix/stacks/cuda.lock pins ${version "torch"}: this commit cannot run over the pinned wheels";
    assert lib.assertMsg (!onCuda || lib.hasPrefix "${cuda.release}." (version "nvidia_cuda_runtime"))
      "nix/stacks/cuda.lock pins CUDA ${version "nvidia_cuda_runtime"}, and LMCache would be compiled with ${cuda.release}";
    value;
in
{
  baseline = agreed baseline;
  with-lmcache = agreed with-lmcache;
  lmcache = agreed package;
}
