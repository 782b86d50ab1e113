# CUDA's packages as nixpkgs makes them (its `buildRedist`, hooks and wrapper of nvcc), from wheels in place of the archives of
# the same releases, which NVIDIA's own host alone has. Takes cuda.wheels.json: { PACKAGE = { WHEEL = SHA-256; }; }.
final: previous:
let
  inherit (final) lib;
  wheelOf = import ./wheel.nix { inherit (final) fetchPypi; };
  # What a wheel holds, laid out as its archive is: with names to link by, and stand-ins for what wheels leave out.
  source =
    package: wheel:
    final.runCommand "${package.pname}-${wheel.version}-source" { } (
      ''
        ${final.python3.interpreter} -m zipfile -e ${wheel.source} .
        mv nvidia/cu13 $out
        cd $out
        rm -rf .metadata
        [ ! -d bin ] || chmod +x bin/* || true
        if [ -d nvvm ]; then # its headers and library lie in the wheel's own folders
          chmod +x nvvm/bin/*
          mv include lib nvvm/
        else
          for library in lib/*.so.*; do
            [ ! -e "$library" ] || ln -sf "''${library##*/}" "''${library%%.so.*}.so"
          done
        fi
        for output in ${toString package.outputs}; do
          case $output in
            static) ar rc lib/none.a ;;
            stubs) mkdir -p lib/stubs && gcc -shared -nostdlib -o lib/stubs/libnone.so -x c /dev/null ;;
          esac
        done
      ''
      + lib.optionalString (package.pname == "cuda_cudart") ''
        # The driver's library, with every function that its header declares.
        mkdir -p lib/stubs
        grep -oE '\bcu[A-Z][A-Za-z0-9_]*' include/cuda.h | sort -u | sed 's/.*/int &(void) { return 100; }/' > $TMPDIR/stub.c
        gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o lib/stubs/libcuda.so $TMPDIR/stub.c
      ''
    );
  filled =
    package: wheels:
    let
      wheel = builtins.head (lib.mapAttrsToList wheelOf wheels);
    in
    assert lib.assertMsg (
      wheel.version == package.version
    ) "nixpkgs has ${package.pname} ${package.version}, and cuda.wheels.json ${wheel.version}";
    package.overrideAttrs {
      src = source package wheel;
      autoPatchelfIgnoreMissingDeps = [ "ld-linux-x86-64.so.2" ]; # the machine's own
    };
in
{
  _cuda = previous._cuda.extend (
    _: old: {
      extensions = old.extensions ++ [
        (
          _: packages:
          builtins.mapAttrs (name: filled packages.${name}) (
            builtins.fromJSON (builtins.readFile ./cuda.wheels.json)
          )
        )
      ];
    }
  );
}
