# The LMCache that a stack compiles: the tree that the flake's input names, or the release of the stack's lock. Returns its tree
# and its version, which only the tree itself can tell.
{
  tree, # null: the release
  release, # as release.nix returns it
}:
let
  # A source distribution says which release it is; a tree from Git does not, and its tags do not come along.
  info = "${tree}/PKG-INFO";
  lines =
    if builtins.pathExists info then
      builtins.filter builtins.isString (builtins.split "\n" (builtins.readFile info))
    else
      [ ];
  named = builtins.filter (match: match != null) (map (builtins.match "Version: *([^ ]+) *") lines);
in
if tree == null then
  {
    inherit (release) version;
    tree = release.archive;
  }
else
  {
    inherit tree;
    version =
      if named != [ ] then
        builtins.head (builtins.head named)
      else
        "0+${if tree ? shortRev then "g${tree.shortRev}" else "unknown"}";
  }
