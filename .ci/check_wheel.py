"""Checks a wheel: only the package fxplain is inside, with every file of its folders.

Usage: python .ci/check_wheel.py FILE.whl
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"tracer": "fxplain", "rules": "fxplain/rules", "adapters": "fxplain/adapters"}


def main(wheel: str) -> str:
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names}
    version = {name for name in top if name.startswith("fxplain-") and name.endswith(".dist-info")}
    if top - version != {"fxplain"}:
        return f"the wheel would install {sorted(top - version)}, expected fxplain alone"
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in names if name.startswith("fxplain/")}
    if packed != expected:
        return f"missing in the wheel: {sorted(expected - packed)}; too many: {sorted(packed - expected)}"
    print(f"{Path(wheel).name}: fxplain alone, {len(packed)} files")
    return ""


if __name__ == "__main__":
    # an empty string would count as a failure: exit codes are None, a number or a message
    sys.exit(main(*sys.argv[1:]) or None)
