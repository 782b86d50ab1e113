"""Makes a wheel that holds metadata only: wheel.py FILE SITE WHEELS OUT.

The modules are in SITE, the packages of an environment that is there already; the wheel of torch puts it on the search
path. A wheel named FILE in the folder WHEELS is taken as it is.
"""

import shutil
import sys
import zipfile
from pathlib import Path


def main(file: str, site: str, wheels: str, out: str) -> None:
    real = Path(wheels) / file
    if real.is_file():
        shutil.copy(real, out)
        return
    name, version, *_ = file.split("-")
    tags = "-".join(file.removesuffix(".whl").split("-")[-3:])
    installed = list(Path(site).glob(f"{name}-{version}*.dist-info"))
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: stand-in\nRoot-Is-Purelib: false\nTag: {tags}\n",
    }
    if installed:
        for kept in ("METADATA", "entry_points.txt"):
            if (installed[0] / kept).is_file():
                files[kept] = (installed[0] / kept).read_text()
    folder = installed[0].name if installed else f"{name}-{version}.dist-info"
    files = {f"{folder}/{path}": text for path, text in files.items()}
    if name == "torch":
        # Not as a plain path, which the driver would follow to count what is installed there.
        files["host-environment.pth"] = f"import sys; sys.path.append({site!r})\n"
    with zipfile.ZipFile(out, "w") as wheel:
        for path, text in {**files, f"{folder}/RECORD": "".join(f"{path},,\n" for path in files)}.items():
            wheel.writestr(zipfile.ZipInfo(path), text)


if __name__ == "__main__":
    main(*sys.argv[1:])
