"""An editable install of a clone, as README describes."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]


def test_a_script_in_the_parent_folder_of_a_clone_imports_the_package(tmp_path: Path) -> None:
    """There, the clone's folder, called prometar, must not hide the package as a namespace package."""
    clone = tmp_path / "prometar"
    for name in ("prometar", "tune"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site_packages = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    build = "from setuptools import build_meta; print(build_meta.build_editable('.'))"
    built = subprocess.run(
        [sys.executable, "-c", build], cwd=clone, check=True, capture_output=True, text=True, timeout=300
    )
    with ZipFile(clone / built.stdout.split()[-1]) as wheel:
        wheel.extractall(site_packages)
    script = tmp_path / "script.py"
    script.write_text("import prometar\nprint(prometar.__file__, callable(prometar.load))\n")
    # The dependencies come from this environment. Its .pth file, which refers to this project, is not read.
    env = {"PYTHONPATH": sysconfig.get_path("purelib")}
    done = subprocess.run(
        [python, script], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env
    )
    assert done.stdout == f"{clone}/prometar/__init__.py True\n", done.stderr
