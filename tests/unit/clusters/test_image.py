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
    stripped = [line.strip() for line in text.splitlines()]
    lines = [line for line in stripped if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")  # a backslash continues an instruction on the next line
    arguments: dict[str, list[str]] = {}
    for line in joined.splitlines():
        name, _, rest = line.partition(" ")
        arguments.setdefault(name, []).append(rest.strip())
    return arguments


def cluster_files() -> list[Path]:
    """Return all files of clusters/, sorted."""
    files = [path for path in CLUSTERS.rglob("*") if path.is_file()]
    return sorted(file for file in files if "__pycache__" not in file.parts)


def check_image(text: str) -> None:
    """Check the Dockerfile of this project's image.

    Raises:
        ValueError: the Dockerfile breaks a rule. The message states the problem.
    """
    steps = instructions(text)
    environment = " ".join(steps["ENV"])
    require(steps["ARG"][0] == f"BASE={BASE}", "another Ray")
    require(steps["FROM"] == ["${BASE}"], "another Ray")
    last_user, _, _group = steps["USER"][-1].partition(":")
    require(last_user not in {"root", "0"}, "the image runs as root")
    pipes_download = re.search(r"\b(curl|wget)\b.*\|", " ".join(steps["RUN"]))
    require(pipes_download is None, "the image runs what it downloads")
    require("AUTH=token" in steps["ARG"], "authentication is off")
    require("RAY_AUTH_MODE=${AUTH}" in environment, "authentication is off")
    # The project is installed in the first folder. Anyscale requires that Ray starts in the second one.
    require(steps["WORKDIR"] == ["/home/ray/prometar", "/home/ray"], "Ray starts in another folder")
    require("HOME=/home/ray" in environment, "the launcher would mount the token below /root")
    check_copied(steps["COPY"])
    check_installed(steps["RUN"])


def check_copied(copies: list[str]) -> None:
    """Check that the image contains all that an installation needs, given the arguments of COPY.

    Raises:
        ValueError: a file is missing.
    """
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
    require(all((ROOT / source).exists() for source in sources), "copies a file that does not exist")


def check_installed(commands: list[str]) -> None:
    """Check that pip keeps the Ray of the base image, given the arguments of RUN.

    Raises:
        ValueError: pip installs another version of Ray, or another set of extras.
    """
    words = " ".join(commands).split()
    [installed] = [Requirement(word.strip("'\"")) for word in words if "ray[" in word]
    require(installed.extras == ray_requirement().extras, "does not keep Ray")
    require(str(installed.specifier) == f"=={RAY_VERSION}", "does not keep Ray")


def test_the_image_pins_ray_and_runs_without_root() -> None:
    check_image(text_of("Dockerfile"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        pytest.param(BASE, "rayproject/ray:latest", "another Ray", id="base image"),
        pytest.param("USER 1000", "USER root", "runs as root", id="user"),
        pytest.param("COPY --chown=1000:100 tune ./tune\n", "", "copies too little", id="missing package"),
        pytest.param("==2.60.0", "==2.59.0", "does not keep Ray", id="version of Ray"),
        pytest.param(
            "RAY_AUTH_MODE=${AUTH}", "RAY_AUTH_MODE=disabled", "authentication is off", id="authentication"
        ),
    ],
)
def test_damage_of_the_image_is_refused(old: str, new: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_image(damaged("Dockerfile", old, new))


@pytest.mark.parametrize(("tool", "name"), [("hadolint", "Dockerfile"), ("shellcheck", "slurm.sh")])
def test_linters_accept_the_files(tool: str, name: str) -> None:
    program = Path(sys.executable).with_name(tool)
    if not program.exists():
        pytest.skip(f"{tool} is not installed (pip install '.[dev]')")
    done = subprocess.run([program, CLUSTERS / name], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert done.returncode == 0


def test_all_files_name_one_version_of_ray() -> None:
    for file in cluster_files():
        versions = re.findall(r"ray:?(\d+\.\d+\.\d+)", file.read_text("utf-8"))
        assert set(versions) <= {RAY_VERSION}, file


def test_all_files_name_one_version_of_python() -> None:
    digits = PYTHON_VERSION.replace(".", "")  # as in the tag of an image, such as py311
    for file in cluster_files():
        versions = re.findall(r"\bpy(3\d+)\b", file.read_text("utf-8"))
        assert set(versions) <= {digits}, file


@pytest.mark.parametrize("name", ["README.md", "Dockerfile"])
def test_installations_on_slurm_and_in_the_image_pin_ray(name: str) -> None:
    assert re.findall(r"ray\[[\w,]+\]==([\d.]+)", text_of(name)) == [RAY_VERSION]


def test_the_pinned_versions_are_within_the_ranges_of_the_package() -> None:
    assert ray_requirement().specifier.contains(RAY_VERSION)
    assert ray_requirement().specifier.contains(ray.__version__)
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(PYTHON_VERSION)


def test_the_runtime_environment_is_valid_and_installs_nothing() -> None:
    content = yaml.safe_load(text_of("runtime-env.yaml"))
    assert RuntimeEnv(**content) == content
    assert set(content) == {"env_vars"}, "a job installs nothing, because the image has all packages"


def test_readme_links_to_every_file() -> None:
    files = {str(file.relative_to(CLUSTERS)) for file in cluster_files()}
    linked = re.findall(r"\]\((?!\.\.)([\w./-]+)\)", text_of("README.md"))
    assert set(linked) == files - {"README.md"}


def test_the_studies_of_the_readme_have_options_that_exist() -> None:
    joined = re.sub(r"\\\n\s*", "", text_of("README.md"))  # a backslash continues a command on the next line
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
    assert {group["market_type"] for group in compute["worker_nodes"]} == {"PREFER_SPOT"}
