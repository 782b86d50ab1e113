# The source distribution of a package that a stack pins: its version and its archive. Takes that part of the stack's list of
# wheels, { "PACKAGE-VERSION.tar.gz" = SHA-256; }.
{ fetchPypi, sources }:
pname:
let
  versionOf = builtins.match "${pname}-(.+)[.]tar[.]gz";
  file = builtins.head (builtins.filter (file: versionOf file != null) (builtins.attrNames sources));
in
rec {
  version = builtins.head (versionOf file);
  archive = fetchPypi {
    inherit pname version;
    sha256 = sources.${file};
  };
}
