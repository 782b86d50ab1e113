"""Reads an image from its tar on standard input and says what a container of it would lack: image.py STACK < IMAGE.

An image is a tar of layers, which are tars as well, and of what `manifest.json` names.
"""

import json
import sys
import tarfile


def main(stack: str) -> None:
    files: dict[str, tarfile.TarInfo] = {}
    documents = {}
    layers = set()
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as image:
        for member in image:
            content = image.extractfile(member)
            if content is None:
                continue
            if member.name.endswith(".tar"):
                layers.add(member.name)
                with tarfile.open(fileobj=content, mode="r|") as layer:
                    files |= {"/" + file.name.removeprefix("./").strip("/"): file for file in layer}
            elif member.name.endswith(".json"):
                documents[member.name] = json.load(content)
    (manifest,) = documents["manifest.json"]
    config = documents[manifest["Config"]]["config"]
    variables = dict(pair.split("=", 1) for pair in config["Env"])

    faults = []
    if set(manifest["Layers"]) != layers:
        faults.append(f"the manifest names layers {manifest['Layers']}, the image holds {sorted(layers)}")
    needed = [*config["Entrypoint"], variables["CC"], variables["CXX"], *variables["PATH"].split(":"), "/bin/sh"]
    for part, name in (("lmcache", "KV_CORRECTNESS_ENV"), ("baseline", "KV_CORRECTNESS_ENV_BASELINE")):
        if not variables[name].endswith(f"-env-{stack}-{part}"):
            faults.append(f"{name} is {variables[name]}")
        needed.append(f"{variables[name]}/bin/python")
    needed += [variables["HOME"], config["WorkingDir"], variables["SSL_CERT_FILE"]]
    if stack == "cuda":
        needed += [variables["CUDA_HOME"], "/sbin/ldconfig"]
    faults += [f"no {path}" for path in needed if path not in files]
    if "/tmp" not in files or files["/tmp"].mode & 0o7777 != 0o1777:
        faults.append("nobody but root can write to /tmp")
    if faults:
        sys.exit("\n".join([f"image: {manifest['RepoTags']}:", *faults]))
    size = sum(file.size for file in files.values())
    print(f"image: {manifest['RepoTags']}, {len(layers)} layers, {len(files)} files of {size / 1e9:.1f} GB")


if __name__ == "__main__":
    main(*sys.argv[1:])
