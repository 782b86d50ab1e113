# STAND-IN for nixpkgs: see README.md.
{
  system,
  overlays ? [ ],
  ...
}:
let
  host = import ./host.nix;
  lib = import ./lib.nix;

  mkDerivation =
    attributes:
    derivation (
      removeAttrs attributes [
        "meta"
        "passthru"
      ]
      // {
        name = attributes.name or "${attributes.pname}-${attributes.version}";
        inherit system;
        builder = "/bin/bash";
        args = [ ./builder.sh ];
      }
    )
    // {
      meta = attributes.meta or { };
    };

  runCommand =
    name: attributes: buildCommand:
    mkDerivation (attributes // { inherit name buildCommand; });

  # A package of links to the machine's programs.
  programs =
    name: paths:
    runCommand name { } ''
      mkdir -p $out/bin
      for path in ${toString paths}; do ln -s "$path" $out/bin/; done
    '';
  empty = name: runCommand name { } "mkdir -p $out/lib";
  stdenv = {
    inherit mkDerivation;
    cc.cc.lib = empty "libstdcxx";
  };
  python = programs "python" [ host.python ] // {
    interpreter = host.python;
    sitePackages = host.site;
  };

  packages = final: {
    inherit lib stdenv runCommand;
    callPackage =
      path: arguments:
      let
        function = import path;
      in
      function (builtins.intersectAttrs (builtins.functionArgs function) final // arguments);
    fetchPypi =
      wheel:
      runCommand "${wheel.pname}-${wheel.version}.whl" {
        file = "${wheel.pname}-${wheel.version}-${wheel.python}-${wheel.abi}-${wheel.platform}.whl";
      } "${host.python} ${./wheel.py} $file ${host.environment}/${host.site} ${host.wheels} $out";
    fetchurl =
      file: runCommand file.name { } "echo 'the stand-in for nixpkgs fetches nothing' >&2; exit 1";
    symlinkJoin = { name, paths }: runCommand name { inherit paths; } "mkdir -p $out";
    writeShellApplication =
      {
        name,
        text,
        runtimeInputs ? [ ],
        meta ? { },
      }:
      runCommand name
        {
          inherit runtimeInputs text meta;
          passAsFile = [ "text" ];
        }
        ''
          mkdir -p $out/bin
          {
            printf '#!/bin/bash\nset -euo pipefail\n'
            for input in $runtimeInputs; do echo "export PATH=$input/bin:\$PATH"; done
            cat $textPath
          } > $out/bin/${name}
          chmod +x $out/bin/${name}
        '';
    mkShell =
      { packages }:
      mkDerivation {
        name = "shell";
        outputs = [ "out" ]; # `nix develop` looks for it
        inherit packages;
        stdenv = runCommand "stdenv" { } ''
          mkdir $out
          echo 'for package in $packages; do PATH=$package/bin:$PATH; done; export PATH' > $out/setup
        '';
        buildCommand = "touch $out";
      };
    rustPlatform.buildRustPackage =
      {
        pname,
        version,
        src,
        meta,
        postInstall,
        ...
      }:
      mkDerivation {
        inherit
          pname
          version
          src
          meta
          ;
        # Compiling takes three minutes in a clean folder; the checkout's own build has done it.
        buildPhase = "cargo metadata --offline --locked --no-deps --format-version 1 > /dev/null";
        CARGO_HOME = host.cargoHome;
        RUSTUP_HOME = host.rustupHome;
        nativeBuildInputs = [ final.cargo ];
        installPhase = ''
          mkdir -p $out/bin
          cp ${host.target}/release/${pname} $out/bin/
          ${postInstall}
        '';
      };
    python3 = python;
    python311 = python;
    python312 = python;
    uv = programs "uv" [ host.uv ];
    nixfmt = programs "nixfmt" [ host.nixfmt ];
    deadnix = programs "deadnix" [ host.deadnix ];
    cargo = programs "cargo" [ "${host.rustPrograms}/cargo" ];
    clippy = programs "clippy" [ "${host.rustPrograms}/cargo-clippy" ];
    rustc = programs "rustc" [ "${host.rustPrograms}/rustc" ];
    rustfmt = programs "rustfmt" [ "${host.rustPrograms}/rustfmt" ];
    git = programs "git" [ "/usr/bin/git" ];
    xz = programs "xz" [ "/usr/bin/xz" ];
    autoPatchelfHook = empty "auto-patchelf-hook";
    zlib = empty "zlib";
    numactl = empty "numactl";
    cudaPackages_13_0 = {
      backendStdenv = stdenv;
      cuda_nvcc = empty "cuda_nvcc";
      cuda_cudart = empty "cuda_cudart";
      cccl = empty "cccl";
      libcublas = empty "libcublas";
      libcurand = empty "libcurand";
      libcusolver = empty "libcusolver";
      libcusparse = empty "libcusparse";
    };
  };

  final = builtins.foldl' (
    packages: overlay: packages // overlay final packages
  ) (packages final) overlays;
in
final
