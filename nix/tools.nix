# What keeps the Nix files in order.
{ pkgs }:
{
  inherit (pkgs) nixfmt deadnix;
  format = pkgs.writeShellApplication {
    name = "format";
    runtimeInputs = [ pkgs.nixfmt ];
    text = ''
      if [ ! -e flake.nix ]; then echo "format: run it where flake.nix is" >&2; exit 2; fi
      find flake.nix nix -name '*.nix' -print0 | xargs -0 nixfmt "$@"
    '';
    meta.description = "Formats the flake's own files; --check only says which are not";
  };
}
