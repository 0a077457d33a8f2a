"""What a release promises: workflows that call the Makefile, and a core without the packages of studies."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
STUDY = [Requirement(text).name for text in PROJECT["optional-dependencies"]["study"]]
WITHOUT_STUDY = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(STUDY)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from prometar.cli.app import main
sys.exit(main())
"""


def run(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `prometar` where the packages of [study] cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_STUDY, *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_runs_and_prompts_need_no_package_of_studies(tmp_path: Path) -> None:
    tiny = ["--set", "train.epochs=1", "--set", "data.shots=1", "--out", "run"]
    for words in (["train", *tiny], ["evaluate", "run"], ["export", "run", "--to", "prompts.safetensors"]):
        done = run(tmp_path, *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "prompts.safetensors").exists()


@pytest.mark.parametrize("words", [["search"], ["compare", "runs"]], ids=" ".join)
def test_a_missing_package_is_named_with_its_extra(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = run(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not installed. Run pip install 'prometar[study]'." in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflows_run_targets_of_the_makefile(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert commands
    for command in commands:
        make, *words = command.split()
        targets = [word for word in words if "=" not in word]
        assert make == "make"
        assert targets
        for target in targets:
            assert f"\n{target}:" in makefile, command


def test_make_runs_every_folder_of_tests() -> None:
    suites = (ROOT / "Makefile").read_text("utf-8").partition("\nSUITES := ")[2].splitlines()[0].split()
    assert sorted(suites) == sorted(
        {path.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/**/test_*.py")}
    )
