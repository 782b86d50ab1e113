#!/usr/bin/env bash
# Lays the Python files of a vLLM tree over the installed wheel, which was built from another tree: RELEASE TREE SITE. RELEASE is
# the unpacked source distribution of that wheel: all that Git tracks, and what was generated when it was packed.
# Refuses a tree that also changes what is compiled or depended on, since the wheel would not have that.
set -euo pipefail
release=$1 tree=$2 site=$3

# What ends up in neither the wheel's Python files nor its compiled ones. Of the tools, setup.py runs one.
harmless=(--exclude='.[!.]*' --exclude='*.md' --exclude=benchmarks --exclude=docker --exclude=docs --exclude=examples
  --exclude=mkdocs.yaml --exclude=tests --exclude=tools)
# What packing generates; setup.cfg only where Git has none.
generated=(--exclude=PKG-INFO --exclude='*.egg-info')
status=0
differing=$(diff -rq --no-dereference "${harmless[@]}" "${generated[@]}" --exclude=vllm "$release" "$tree") || status=$?
[ "$status" -le 1 ] # 2: it could not compare them
if [ -e "$release/tools/build_rust.py" ]; then
  differing+=$'\n'$(diff -qN "$release/tools/build_rust.py" "$tree/tools/build_rust.py") || [ $? -le 1 ]
fi
refused=$(grep -vxF -e "" -e "Only in $release: setup.cfg" <<<"$differing" || true)
if [ -n "$refused" ]; then
  echo "refused: this vLLM changes more than Python files, and its wheel is that of the pinned release:" >&2
  printf '%s\n' "$refused" | sed "s|$release|release|g; s|$tree|commit|g" | head -n 20 >&2
  echo "hint: name a commit that differs from the release in Python files alone, or pin a newer release in nix/stacks/cuda.in" >&2
  exit 1
fi
# Files that the tree no longer has go; those that only the wheel has (compiled or generated) stay.
(cd "$release/vllm" && find . -type f ! -path ./_version.py) | while read -r file; do
  [ -e "$tree/vllm/$file" ] || rm -f "$site/vllm/$file"
done
cp -r --no-preserve=mode,ownership "$tree/vllm/." "$site/vllm/"
