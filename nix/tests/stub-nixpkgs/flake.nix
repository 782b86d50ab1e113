{
  description = "STAND-IN for nixpkgs, for tests without a network: see README.md";
  outputs = _: { };
}
