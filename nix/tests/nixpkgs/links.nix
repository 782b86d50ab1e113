# The overlay of links: each package that a build would otherwise download or compile, as a folder of links to what the machine
# has. Anything that is not listed stays nixpkgs' own.
{ host }:
final: previous:
let
  # A package of the given programs and libraries of the machine; either may be absent.
  package =
    name: attributes:
    let
      made =
        final.runCommand name
          {
            pname = name;
            version = attributes.version or "0";
            programs = map (program: host.programs.${program} or "/usr/bin/${program}") (
              attributes.programs or [ ]
            );
            libraries = map (library: "${host.libraries}/${library}") (attributes.libraries or [ ]);
            meta = {
              mainProgram = builtins.head ((attributes.programs or [ ]) ++ [ name ]);
              broken = attributes.broken or false;
              platforms = final.lib.platforms.linux;
              badPlatforms = [ ];
              targetPlatforms = final.lib.platforms.linux;
              badTargetPlatforms = [ ];
            };
          }
          ''
            mkdir -p $out/bin $out/lib
            for program in $programs; do ln -s "$program" $out/bin/; done
            for library in $libraries; do ln -s "$library" $out/lib/; done
          '';
    in
    made
    // {
      bin = made;
      dev = made;
      lib = made;
      override = _: package name attributes;
    }
    // attributes.more or { };
  python =
    name: version:
    let
      self = package name {
        inherit version;
        programs = [ ];
        more = {
          interpreter = host.pythons.${name};
          sitePackages = "lib/python${version}/site-packages";
          pythonVersion = version;
          isPy3k = true;
          pythonOnBuildForHost = self;
          withPackages = _: self.scripting;
          scripting = final.runCommand "${name}-with-packages" { } ''
            mkdir -p $out/bin
            printf '#!/bin/sh\nexec ${host.scripting} "$@"\n' > $out/bin/python3
            chmod +x $out/bin/python3
            ln -s python3 $out/bin/python
          '';
        };
      };
    in
    self;
  named = name: package name { programs = [ name ]; };
in
{
  xz = named "xz";
  patchelf = named "patchelf";
  curl = named "curl";
  jq = named "jq";
  uv = named "uv";
  git = named "git";
  openssl = named "openssl";
  bash = package "bash" {
    programs = [ "bash" ];
    more.shellPath = "/bin/bash";
  };
  bashNonInteractive = final.bash;
  bashInteractive = final.bash;
  dash = named "dash";
  shellcheck = named "shellcheck";
  shellcheck-minimal = final.shellcheck // {
    compiler.bootstrapAvailable = true;
  };
  nixfmt = named "nixfmt";
  deadnix = named "deadnix";
  pkg-config = named "pkg-config";
  pkg-config-unwrapped = named "pkg-config";
  coreutils = package "coreutils" { programs = host.coreutils; };
  diffutils = package "diffutils" {
    programs = [
      "diff"
      "cmp"
    ];
  };
  findutils = package "findutils" {
    programs = [
      "find"
      "xargs"
    ];
  };
  gnugrep = named "grep";
  gnused = named "sed";
  gawk = named "awk";
  which = named "which";
  util-linux = package "util-linux" { programs = [ "lscpu" ]; };
  util-linuxMinimal = final.util-linux;
  redis = named "redis-server";
  nix = named "nix";
  glibc = package "glibc" {
    libraries = [
      "libc.so.6"
      "libdl.so.2"
      "libm.so.6"
      "libpthread.so.0"
      "librt.so.1"
      "libutil.so.1"
    ];
  };
  libiconv = package "libiconv" { programs = [ ]; };
  getent = named "getent";
  # The wrapper of the machine's binutils does not say which loader and C library programs are for.
  auto-patchelf = previous.auto-patchelf.overrideAttrs {
    postPatch = ''
      substituteInPlace auto-patchelf.py \
        --replace-fail "os.environ.get('NIX_BINTOOLS', DEFAULT_BINTOOLS)" "DEFAULT_BINTOOLS"
    '';
    preBuild = "export NIX_BINTOOLS=${
      final.runCommand "bintools" { } ''
        mkdir -p $out/nix-support
        echo /lib64/ld-linux-x86-64.so.2 > $out/nix-support/dynamic-linker
        echo ${final.glibc} > $out/nix-support/orig-libc
      ''
    }";
  };
  zlib = package "zlib" { libraries = [ "libz.so.1" ]; };
  numactl = package "numactl" { libraries = [ "libnuma.so.1" ]; };
  compilerLibraries = package "compiler-libraries" {
    libraries = [
      "libstdc++.so.6"
      "libgcc_s.so.1"
      "libgomp.so.1"
    ];
  };
  bintools = final.stdenv.cc.bintools;
  binutils = final.stdenv.cc.bintools;
  gcc = final.stdenv.cc;
  wrapCC = _: final.stdenv.cc;
  wrapCCWith = _: final.stdenv.cc;
  python3 = python "python3" "3.12";
  python311 = python "python311" "3.11";
  python312 = python "python312" "3.12";
  cargo = named "cargo";
  rustc = named "rustc" // {
    targetPlatforms = final.lib.platforms.linux;
    badTargetPlatforms = [ ];
  };
  clippy = package "clippy" { programs = [ "cargo-clippy" ]; };
  rustfmt = package "rustfmt" { programs = [ "cargo-fmt" ]; };
  cargo-auditable = package "cargo-auditable" {
    broken = true;
    more.meta.broken = true;
  };
  # What an image is made with. Its script would be checked by a linter that is compiled first.
  writers = previous.writers // {
    writePython3 =
      name: _: script:
      final.runCommand name { } ''
        { echo '#!${host.pythons.python3}'; cat ${script}; } > $out
        chmod +x $out
      '';
  };
  fakeroot = named "fakeroot";
  lndir = final.runCommand "lndir" { } ''
    mkdir -p $out/bin
    printf '#!/bin/sh\nexec cp --recursive --symbolic-link --no-clobber --no-preserve=mode "$2/." "$3"\n' > $out/bin/lndir
    chmod +x $out/bin/lndir
  '';
  fakeNss = previous.fakeNss or final.emptyDirectory;
  cacert = final.runCommand "cacert" { } ''
    mkdir -p $out/etc/ssl/certs
    ln -s /etc/ssl/certs/ca-certificates.crt $out/etc/ssl/certs/ca-bundle.crt
  '';
  rustPlatform = final.makeRustPlatform { inherit (final) cargo rustc; };
}
