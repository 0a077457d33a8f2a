"""The wheel holds every file that the code reads, and the commands work from it alone."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from prometar import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("prometar", "tune")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make dist` builds, of a copy: a build leaves files behind. No network is used."""
    copy = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return copy / "dist"


def wheel(built: Path) -> Path:
    return built / f"prometar-{__version__}-py3-none-any.whl"


def files_of_packages() -> set[str]:
    found = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_wheel_and_source_archive_hold_every_file(built: Path) -> None:
    wanted = files_of_packages()
    assert {
        "prometar/bundled/mini.safetensors", "prometar/bundled/foreign.txt",
        "tune/reproduce/published.json", "prometar/config/recipes/prometar.yaml", "prometar/py.typed",
        "tune/space/spaces/default.yaml", "tune/report/templates/report.html.jinja",
        "prometar/data/datasets/benchmarks.yaml",
        "tune/report/templates/page.css",
    } <= wanted  # fmt: skip
    with ZipFile(wheel(built)) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == wanted
    with tarfile.open(built / f"prometar-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_commands_run_from_the_wheel(built: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    with ZipFile(wheel(built)) as archive:
        archive.extractall(target)  # what an installer does with a wheel of plain packages
    code = "import sys, prometar, tune.search; from prometar.__main__ import main; print(prometar.__file__);"

    def run(*words: str) -> str:
        command = [sys.executable, "-c", f"{code} sys.argv[1:] = {list(words)!r}; sys.exit(main())"]
        here = {**os.environ, "PYTHONPATH": str(target)}
        done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        where, _, said = done.stdout.partition("\n")
        assert where == str(target / "prometar" / "__init__.py")
        return said

    assert " search " in run("--help")
    assert "textures" in run("data", "list")
    assert "At most: " in run("search", "--plan", "--dataset", "cells")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]
