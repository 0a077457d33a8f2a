"""Wheel and source archive hold every file that the code reads. `make smoke` runs an installed wheel."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

from prometar import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("prometar", "tune")


def test_wheel_and_source_archive_hold_every_file(tmp_path: Path) -> None:
    """Built of a copy, because a build leaves files behind, and without a network."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    wanted = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with ZipFile(tmp_path / f"dist/prometar-{__version__}-py3-none-any.whl") as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == wanted
    with tarfile.open(tmp_path / f"dist/prometar-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted | {"pyproject.toml", "README.md", "LICENSE"} <= names
