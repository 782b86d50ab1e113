# What engines and the driver call at run time, besides the environments: compilers (PyTorch's inductor and Triton compile
# while an engine starts), lscpu (vLLM asks it for the processors), and what the driver starts.
{ pkgs }:
let
  inherit (pkgs) lib;
  # A builder's sandbox has no /sys, and there lscpu fails. Then each processor is a core of one node, as vLLM itself takes it
  # where lscpu says nothing.
  lscpu = pkgs.writeShellApplication {
    name = "lscpu";
    runtimeInputs = [ pkgs.coreutils ];
    text = ''
      lscpu=${lib.getExe' pkgs.util-linux "lscpu"}
      ${builtins.readFile ./lscpu.sh}
    '';
  };
  compiler = pkgs.stdenv.cc;
in
rec {
  programs = [
    lscpu
    compiler
    pkgs.bash
    pkgs.coreutils
    pkgs.git
    pkgs.gnugrep
    pkgs.gnused
    pkgs.redis
    pkgs.uv
    pkgs.which
  ];
  path = lib.makeBinPath programs;
  variables = {
    CC = "${compiler}/bin/cc";
    CXX = "${compiler}/bin/c++";
  };
}
