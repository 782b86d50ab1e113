# The driver.
{
  lib,
  rustPlatform,
  python3,
  bashInteractive,
  git,
  doCheck ? false,
}:
let
  manifest = builtins.fromTOML (builtins.readFile ../Cargo.toml);
in
rustPlatform.buildRustPackage {
  pname = manifest.package.name;
  inherit (manifest.package) version;
  src = lib.fileset.toSource {
    root = ../.;
    # What the tests alone read does not change the driver, and of the stacks only what is embedded does.
    fileset = lib.fileset.unions (
      lib.optionals doCheck [
        (lib.fileset.fileFilter (file: file.hasExt "json") ../docs/atlas)
        ../docs/atlas.schema.json
        ../docs/connectors
        ../docs/evidence
        ../tests
      ]
      ++ [
        ../Cargo.toml
        ../Cargo.lock
        ../benches # the manifest names them
        ../data
        ../docs/report.schema.json
        (lib.fileset.fileFilter (
          file: file.hasExt "in" || file.hasExt "lock" || file.hasExt "overrides" || file.hasExt "txt"
        ) ../nix/stacks)
        ../src
        ../templates
      ]
    );
  };
  cargoLock.lockFile = ../Cargo.lock;
  inherit doCheck; # the tests play vLLM and LMCache with Python scripts
  nativeCheckInputs = [
    python3
    git
    bashInteractive # of which completions are tried: the builder's own bash cannot complete
  ];
  postInstall = ''
    driver=$out/bin/${manifest.package.name} share=$out/share
    "$driver" man $share/man/man1
    mkdir -p $share/bash-completion/completions $share/zsh/site-functions $share/fish/vendor_completions.d
    "$driver" completions bash > $share/bash-completion/completions/${manifest.package.name}
    "$driver" completions zsh > $share/zsh/site-functions/_${manifest.package.name}
    "$driver" completions fish > $share/fish/vendor_completions.d/${manifest.package.name}.fish
  '';
  meta = {
    inherit (manifest.package) description;
    license = lib.licenses.asl20;
    mainProgram = manifest.package.name;
    platforms = [ "x86_64-linux" ];
  };
}
