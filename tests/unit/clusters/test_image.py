"""The image, the job files and the scripts of clusters/: versions, rules, and linters for their languages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.runtime_env import RuntimeEnv

from tests.support.shipped import (
    CLUSTERS,
    PYPROJECT,
    PYTHON_VERSION,
    RAY_VERSION,
    ROOT,
    TAG,
    check_study,
    damaged,
    ray_requirement,
    text_of,
)
from tests.unit.clusters.rules import require

BASE = f"rayproject/ray:{RAY_VERSION}-py{PYTHON_VERSION.replace('.', '')}-gpu"


def instructions(text: str) -> dict[str, list[str]]:
    """Return the arguments of a Dockerfile's instructions by name, such as "RUN". Each is one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, list[str]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest.strip())
    return found


def cluster_files() -> list[Path]:
    """Return all files of clusters/, sorted."""
    return sorted(file for file in CLUSTERS.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def check_image(text: str) -> None:
    """Check the Dockerfile of this project's image.

    Raises:
        ValueError: the Dockerfile breaks a rule. The message states the problem.
    """
    steps = instructions(text)
    environment = " ".join(steps["ENV"])
    require(steps["ARG"][0] == f"BASE={BASE}", "another Ray")
    require(steps["FROM"] == ["${BASE}"], "another Ray")
    require(steps["USER"][-1].split(":")[0] not in {"root", "0"}, "the image runs as root")
    pipes_download = re.search(r"\b(curl|wget)\b.*\|", " ".join(steps["RUN"]))
    require(pipes_download is None, "runs what it downloads")
    require("AUTH=token" in steps["ARG"], "authentication is off")
    require("RAY_AUTH_MODE=${AUTH}" in environment, "authentication is off")
    require(
        steps["WORKDIR"] == ["/home/ray/prometar", "/home/ray"], "Ray does not start where Anyscale wants it"
    )
    require("HOME=/home/ray" in environment, "the launcher would mount the token below /root")
    check_copied(steps["COPY"])
    check_installed(steps["RUN"])


def check_copied(copies: list[str]) -> None:
    """Check that the image contains all that an installation needs, given the arguments of COPY."""
    sources: set[str] = set()
    for arguments in copies:
        paths = [word for word in arguments.split() if not word.startswith("--")]
        sources.update(paths[:-1])  # the last path is the destination
    needed = {
        PYPROJECT["readme"],
        *PYPROJECT["license-files"],
        "pyproject.toml",
        "prometar",
        "tune",
        "clusters",
    }
    require(needed <= sources, "copies too little")
    require(all((ROOT / source).exists() for source in sources), "copies too little")


def check_installed(commands: list[str]) -> None:
    """Check that pip keeps the Ray of the base image, given the arguments of RUN."""
    words = [word.strip("'\"") for command in commands for word in command.split()]
    [installed] = [Requirement(word) for word in words if "ray[" in word]
    require(installed.extras == ray_requirement().extras, "does not keep Ray")
    require(str(installed.specifier) == f"=={RAY_VERSION}", "does not keep Ray")


def test_the_image_pins_ray_and_runs_without_root() -> None:
    check_image(text_of("Dockerfile"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (BASE, "rayproject/ray:latest", "another Ray"),
        ("USER 1000", "USER root", "runs as root"),
        ("COPY --chown=1000:100 tune ./tune\n", "", "copies too little"),
        ("==2.60.0", "==2.59.0", "does not keep Ray"),
        ("RAY_AUTH_MODE=${AUTH}", "RAY_AUTH_MODE=disabled", "authentication is off"),
    ],
)
def test_damage_of_the_image_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_image(damaged("Dockerfile", old, new))


@pytest.mark.parametrize(("tool", "name"), [("hadolint", "Dockerfile"), ("shellcheck", "slurm.sh")])
def test_linters_accept_the_files(tool: str, name: str) -> None:
    program = Path(sys.executable).with_name(tool)
    if not program.exists():
        pytest.skip(f"{tool} is not installed (pip install '.[dev]')")
    found = subprocess.run([program, CLUSTERS / name], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


def test_all_files_name_one_version_of_ray_and_one_of_python() -> None:
    pins = re.findall(r"ray\[[\w,]+\]==([\d.]+)", text_of("README.md") + text_of("Dockerfile"))
    assert pins == [RAY_VERSION, RAY_VERSION], "on Slurm and in the image"
    assert ray_requirement().specifier.contains(RAY_VERSION)
    assert ray_requirement().specifier.contains(ray.__version__)
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(PYTHON_VERSION)
    for file in cluster_files():
        text = file.read_text("utf-8")
        assert set(re.findall(r"ray:?(\d+\.\d+\.\d+)", text)) <= {RAY_VERSION}, file
        assert set(re.findall(r"\bpy(3\d+)\b", text)) <= {PYTHON_VERSION.replace(".", "")}, file


def test_the_runtime_environment_is_valid_and_installs_nothing() -> None:
    content = yaml.safe_load(text_of("runtime-env.yaml"))
    assert RuntimeEnv(**content) == content
    assert set(content) == {"env_vars"}, "a job installs nothing: the image has it"


def test_readme_names_every_file_and_its_studies_have_options_that_exist() -> None:
    text = text_of("README.md")
    files = {str(file.relative_to(CLUSTERS)) for file in cluster_files()}
    assert set(re.findall(r"\]\((?!\.\.)([\w./-]+)\)", text)) == files - {"README.md"}
    joined = re.sub(r"\\\n\s*", "", text)  # a backslash continues a command on the next line
    commands = re.findall(r"^python clusters/submit.py .*? -- (python .*)$", joined, flags=re.MULTILINE)
    assert commands
    for command in commands:
        check_study(command, "/mnt/shared")


def test_the_anyscale_job_keeps_its_head_free_and_retries() -> None:
    job = yaml.safe_load(text_of("anyscale.yaml"))
    check_study(job["entrypoint"], "/mnt/shared_storage")
    assert job["image_uri"].endswith(f":{TAG}")
    assert job["max_retries"] >= 1
    compute = job["compute_config"]
    assert compute["head_node"]["resources"] == {"CPU": 0, "GPU": 0}, "the head would run trials"
    assert {each["market_type"] for each in compute["worker_nodes"]} == {"PREFER_SPOT"}
