"""Take out of a wheel of bitsandbytes the libraries that a machine doesn't need: `strip.py WHEEL cpu cuda130`."""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path


def strip(wheel: Path, kept: list[str]) -> None:
    """Write the wheel anew with the kept `libbitsandbytes_*.so` alone, and a RECORD of what it holds then."""
    lines, names = [], [f"libbitsandbytes_{kind}.so" for kind in kept]
    smaller = wheel.with_suffix(".part")
    with (
        zipfile.ZipFile(wheel) as whole,
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as rest,
    ):
        libraries = {name for name in whole.namelist() if name.endswith(".so")}
        wanted = {name for name in libraries if Path(name).name in names}
        if len(wanted) != len(names):
            raise SystemExit(f"{wheel.name} lacks some of {names}; it has {sorted(libraries)}.")
        record = next(name for name in whole.namelist() if name.endswith(".dist-info/RECORD"))
        for name in whole.namelist():
            if name == record or name in libraries - wanted:
                continue
            content = whole.read(name)
            rest.writestr(whole.getinfo(name), content, compress_type=zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            lines.append(f"{name},sha256={digest.decode()},{len(content)}")
        rest.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    smaller.replace(wheel)


if __name__ == "__main__":
    strip(Path(sys.argv[1]), sys.argv[2:])
