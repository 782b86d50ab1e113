# A build that asks for the feature of a GPU builder, and for what docs/builders.md has one show in its sandbox.
{
  time, # of the test: what an earlier one built must not be found
}:
derivation {
  name = "asks-for-cuda";
  inherit time;
  system = "x86_64-linux";
  builder = "/bin/sh";
  requiredSystemFeatures = [ "cuda" ];
  args = [
    "-c"
    "test -s /run/opengl-driver/lib/libcuda.so.1 && test -c /dev/nvidiactl && echo shown > $out; exit $?"
  ];
}
