# What is wrong with a flake.lock: a path of one machine, a source whose content is not pinned, or another vLLM than that whose
# wheel is installed. Takes the parsed file, and the list of the stack's wheels.
{ lock, wheels }:
let
  releases = builtins.filter (match: match != null) (
    map (builtins.match "vllm-([0-9][^-]*)-.*") (builtins.attrNames wheels.vllm)
  );
  release = builtins.head (builtins.head releases);
  problem =
    name:
    let
      locked = lock.nodes.${name}.locked or null;
    in
    if locked == null then
      [ ]
    else if locked.type == "path" then
      [ "${name} is a path" ]
    else if !(locked ? narHash) then
      [ "${name} has no narHash" ]
    else if name == "vllm-release" && baseNameOf (locked.url or "") != "v${release}.tar.gz" then
      [ "${name} is not v${release}, whose wheel is installed" ]
    else
      [ ];
in
builtins.concatMap problem (builtins.attrNames lock.nodes)
