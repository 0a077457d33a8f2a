"""The image, the job files and the scripts: one Ray, one Python, and linters that know their languages."""

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

BASE = f"rayproject/ray:{RAY_VERSION}-py{PYTHON_VERSION.replace('.', '')}-gpu"


def instructions(text: str) -> dict[str, list[str]]:
    """Arguments of a Dockerfile's instructions, each in one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, list[str]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest.strip())
    return found


def check_image(text: str) -> None:
    """
    Raises:
        ValueError: what is wrong with the Dockerfile of this project's image.
    """
    steps = instructions(text)
    sources = {word for copy in steps["COPY"] for word in copy.split()[:-1] if not word.startswith("--")}
    needed = {
        PYPROJECT["readme"],
        *PYPROJECT["license-files"],
        "pyproject.toml",
        "prometar",
        "tune",
        "clusters",
    }
    installed = [Requirement(w.strip("'\"")) for run in steps["RUN"] for w in run.split() if "ray[" in w]
    rules = {
        "another Ray": (steps["ARG"][0], steps["FROM"]) == (f"BASE={BASE}", ["${BASE}"]),
        "the image runs as root": steps["USER"][-1].split(":")[0] not in {"root", "0"},
        "runs what it downloads": not re.search(r"\b(curl|wget)\b.*\|", " ".join(steps["RUN"])),
        "copies too little": needed <= sources and all((ROOT / source).exists() for source in sources),
        "does not keep Ray": [(r.extras, str(r.specifier)) for r in installed]
        == [(ray_requirement().extras, f"=={RAY_VERSION}")],
        "authentication is off": "AUTH=token" in steps["ARG"]
        and "RAY_AUTH_MODE=${AUTH}" in " ".join(steps["ENV"]),
        "Ray does not start where Anyscale wants it": steps["WORKDIR"] == ["/home/ray/prometar", "/home/ray"],
        "the launcher would mount the token below /root": "HOME=/home/ray" in " ".join(steps["ENV"]),
    }
    for what, holds in rules.items():
        if not holds:
            raise ValueError(what)


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


def test_one_ray_and_one_python() -> None:
    pins = re.findall(r"ray\[[\w,]+\]==([\d.]+)", text_of("README.md") + text_of("Dockerfile"))
    assert pins == [RAY_VERSION] * 2, "on Slurm and in the image"
    assert all(ray_requirement().specifier.contains(each) for each in (RAY_VERSION, ray.__version__))
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(PYTHON_VERSION)
    for file in sorted(CLUSTERS.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            text = file.read_text("utf-8")
            assert set(re.findall(r"ray:?(\d+\.\d+\.\d+)", text)) <= {RAY_VERSION}, file
            assert set(re.findall(r"\bpy(3\d+)\b", text)) <= {PYTHON_VERSION.replace(".", "")}, file


def test_the_runtime_environment_is_valid_and_installs_nothing() -> None:
    content = yaml.safe_load(text_of("runtime-env.yaml"))
    assert RuntimeEnv(**content) == content
    assert set(content) == {"env_vars"}, "a job installs nothing: the image has it"


def test_readme_names_every_file_and_its_studies_have_options_that_exist() -> None:
    text = text_of("README.md")
    files = {
        str(file.relative_to(CLUSTERS))
        for file in CLUSTERS.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert set(re.findall(r"\]\((?!\.\.)([\w./-]+)\)", text)) == files - {"README.md"}
    commands = re.findall(r"^python clusters/submit.py .*? -- (python .*)$", text, flags=re.MULTILINE)
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
