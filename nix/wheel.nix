# Fetches a wheel by its file name and digest; fetchPypi knows where wheels of such a name are kept.
{ fetchPypi }:
file: sha256:
let
  parts = builtins.match "([^-]+)-(.+)-([^-]+)-([^-]+)-([^-]+)[.]whl" file;
  part = builtins.elemAt parts;
in
{
  inherit file;
  version = part 1;
  source = fetchPypi {
    format = "wheel";
    pname = part 0;
    version = part 1; # with the build number, where there is one
    dist = part 2;
    python = part 2;
    abi = part 3;
    platform = part 4;
    inherit sha256;
  };
}
