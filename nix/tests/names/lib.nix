# The functions of nixpkgs' lib that the flake uses, as far as it uses them.
let
  inherit (builtins)
    any
    isPath
    path
    stringLength
    substring
    ;
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix =
    suffix: text:
    let
      start = stringLength text - stringLength suffix;
    in
    start >= 0 && substring start (-1) text == suffix;
  # A set of files is a predicate over a path as text and its type.
  asSet =
    set:
    if isPath set then
      (
        file: type:
        let
          own = toString set;
        in
        file == own || hasPrefix "${own}/" file || (type == "directory" && hasPrefix "${file}/" own)
      )
    else
      set;
in
{
  inherit hasPrefix;
  optionalString = condition: text: if condition then text else "";
  optionalAttrs = condition: set: if condition then set else { };
  assertMsg = condition: message: if condition then true else throw message;
  getExe = package: "${package}/bin/${package.meta.mainProgram or package.name}";
  getExe' = package: program: "${package}/bin/${program}";
  getOutput = _: package: package;
  makeBinPath = packages: builtins.concatStringsSep ":" (map (package: "${package}/bin") packages);
  optionals = condition: values: if condition then values else [ ];
  optional = condition: value: if condition then [ value ] else [ ];
  remove = unwanted: builtins.filter (value: value != unwanted);
  licenses.asl20.spdxId = "Apache-2.0";
  fileset = {
    unions =
      sets: file: type:
      any (set: asSet set file type) sets;
    fileFilter =
      wanted: root: file: type:
      asSet root file type
      && (
        type == "directory"
        || wanted {
          inherit type;
          name = baseNameOf file;
          hasExt = extension: hasSuffix ".${extension}" file;
        }
      );
    toSource =
      { root, fileset }:
      path {
        path = root;
        name = "source";
        filter = file: type: asSet fileset file type;
      };
  };
}
