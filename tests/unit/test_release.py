"""What a release promises: workflows that call the Makefile, and a core that needs no packages of studies."""

import json
import re
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
"""Packages of the extra `study`."""

WITHOUT_STUDY = f"""
import json
import re
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(STUDY)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from prometar.cli.app import main
print([main(words) for words in json.loads(sys.argv[1])])
"""
"""Program that runs the commands in its argument as if `STUDY` were not installed.

The last line of its output is the list of their exit statuses.
"""


def test_training_evaluation_and_export_need_no_packages_of_studies(small_dtd: Path, tmp_path: Path) -> None:
    train = ["train", "--dataset", "dtd", "--data-root", str(small_dtd), "--out", "run"]
    for setting in ("backbone.name=mini", "train.epochs=1", "data.shots=1"):
        train += ["--set", setting]
    evaluate = ["evaluate", "run"]
    export = ["export", "run", "--to", "prompts.safetensors"]
    need_study = [["search"], ["compare", "run"]]
    commands = json.dumps([train, evaluate, export, *need_study])

    process = [sys.executable, "-c", WITHOUT_STUDY, commands]
    done = subprocess.run(process, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 1, 1]", done.stderr
    assert (tmp_path / "prompts.safetensors").exists()
    refusals = done.stderr.splitlines()
    assert len(refusals) == len(need_study)
    assert all("is not installed. Run pip install -e '.[study]'." in line for line in refusals)


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_the_makefile(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    makefile = (ROOT / "Makefile").read_text("utf-8")

    assert commands
    for command in commands:
        program, *arguments = command.split()
        assert program == "make"
        targets = [argument for argument in arguments if "=" not in argument]  # without VARIABLE=value
        assert targets
        for target in targets:
            assert f"\n{target}:" in makefile, command


def test_make_runs_every_folder_of_tests() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    lists = re.findall(r"^(?:SUITES|test-.*) := (.*)$", makefile, re.MULTILINE)
    listed = {name for each in lists for name in each.split()}
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/**/test_*.py")}
    assert listed == {*folders, "fast"}, "`fast` is not a folder, but stands for several"
