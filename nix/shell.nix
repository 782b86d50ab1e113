# Everything that a contributor needs, but for the Python environments, which the driver makes from the locks.
{ pkgs, tools }:
pkgs.mkShell {
  packages = [
    pkgs.cargo
    pkgs.clippy
    pkgs.rustc
    pkgs.rustfmt
    pkgs.python311
    pkgs.uv
    pkgs.xz
    pkgs.git
    tools.nixfmt
    tools.deadnix
  ];
}
