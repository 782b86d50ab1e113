# What is wrong with a flake.lock: a path of one machine, or a source whose content is not pinned. Takes the parsed file.
lock:
let
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
    else
      [ ];
in
builtins.concatMap problem (builtins.attrNames lock.nodes)
