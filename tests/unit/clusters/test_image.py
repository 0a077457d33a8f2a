"""The image, the job files and the scripts: one Ray, one Python, and linters that know their languages."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.runtime_env import RuntimeEnv

from tests.support.anyscale_models import Job
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


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile as (instruction, its arguments in one line)."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name.upper(), rest.strip()) for name, _, rest in (row.partition(" ") for row in joined.splitlines())
    ]


def check_image(text: str, root: Path = ROOT) -> None:
    """The Dockerfile of this project's image.

    Raises:
        ValueError: what is wrong with it.
    """
    steps = instructions(text)
    of = {name: [rest for step, rest in steps if step == name] for name, _ in steps}
    if (of["ARG"][0], of["FROM"]) != (f"BASE={BASE}", ["${BASE}"]):
        raise ValueError(f"built from {of['ARG']}, expected {BASE}")
    if not of.get("USER") or of["USER"][-1].split(":")[0] in {"root", "0"}:
        raise ValueError("the image runs as root")
    for command in of["RUN"]:
        if re.search(r"\b(curl|wget)\b.*\|", command):
            raise ValueError(f"runs what it downloads: {command}")
    sources = [word for copy in of["COPY"] for word in shlex.split(copy)[:-1] if not word.startswith("--")]
    for source in sources:
        if not (root / source).exists():
            raise ValueError(f"copies {source}, which is not there")
    needed = {
        "pyproject.toml",
        PYPROJECT["readme"],
        *PYPROJECT["license-files"],
        "prometar",
        "tune",
        "clusters",
    }
    if missing := needed - set(sources):
        raise ValueError(f"does not copy {sorted(missing)}")
    installed = [Requirement(w) for command in of["RUN"] for w in shlex.split(command) if w.startswith("ray")]
    pins = {(r.extras == ray_requirement().extras, str(r.specifier)) for r in installed}
    if pins != {(True, f"=={RAY_VERSION}")}:
        raise ValueError(f"does not keep Ray at {RAY_VERSION} with pyproject.toml's extras")
    if "AUTH=token" not in of["ARG"] or "RAY_AUTH_MODE=${AUTH}" not in " ".join(of["ENV"]):
        raise ValueError("token authentication is off")
    if of["WORKDIR"] != ["/home/ray/prometar", "/home/ray"]:
        raise ValueError("the code is not where the jobs look, or Ray does not start where Anyscale wants it")
    if "HOME=/home/ray" not in " ".join(of["ENV"]):
        raise ValueError("the launcher would mount the token below /root")


def test_image() -> None:
    check_image(text_of("Dockerfile"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (BASE, "rayproject/ray:latest", "built from"),
        (BASE, "rayproject/ray:2.60.0-py312-gpu", "built from"),
        ("USER 1000", "USER root", "runs as root"),
        ("RUN pip", "RUN curl -sS example.com/x | sh && pip", "runs what it downloads"),
        ("README.md LICENSE", "README.md LICENCE", "copies LICENCE, which is not there"),
        ("COPY --chown=1000:100 tune ./tune\n", "", r"does not copy \['tune'\]"),
        ("==2.60.0", "==2.59.0", "does not keep"),
        ("AUTH=token", "AUTH=disabled", "authentication is off"),
        ("RAY_AUTH_MODE=${AUTH}", "RAY_AUTH_MODE=disabled", "authentication is off"),
        ("WORKDIR /home/ray\n", "WORKDIR /tmp\n", "where Anyscale wants it"),
        ("HOME=/home/ray", "HOUSE=/home/ray", "below /root"),
    ],
)
def test_damage_of_the_image_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_image(damaged("Dockerfile", old, new))


def lint(tool: str, file: Path) -> subprocess.CompletedProcess[str]:
    """A linter that its package puts beside python."""
    program = Path(sys.executable).with_name(tool)
    if not program.exists():
        pytest.skip(f"{tool} is not installed (pip install '.[dev]')")
    return subprocess.run([program, file], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("tool", "name", "old", "new", "message"),
    [
        ("hadolint", "Dockerfile", "--no-cache-dir", "", "DL3042"),
        ("shellcheck", "slurm.sh", 'rm -f "$ended"', "rm -f $ended", "SC2086"),
    ],
)
def test_linters(tool: str, name: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    found = lint(tool, CLUSTERS / name)
    assert (found.returncode, found.stdout) == (0, "")
    worse = tmp_path / name
    worse.write_text(damaged(name, old, new))
    assert message in lint(tool, worse).stdout


def test_one_ray_and_one_python() -> None:
    assert Version(RAY_VERSION) in ray_requirement().specifier
    pins = re.findall(r"ray\[[\w,]+\]==([\d.]+)", text_of("README.md") + text_of("Dockerfile"))
    assert pins == [RAY_VERSION] * 2, "on Slurm and in the image"
    assert ray_requirement().specifier.contains(ray.__version__)
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(PYTHON_VERSION)
    for file in sorted(CLUSTERS.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            text = file.read_text("utf-8")
            assert set(re.findall(r"ray:?(\d+\.\d+\.\d+)", text)) <= {RAY_VERSION}, file
            assert set(re.findall(r"\bpy(3\d+)\b", text)) <= {PYTHON_VERSION.replace(".", "")}, file


def test_runtime_env() -> None:
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


def check_anyscale(text: str) -> None:
    """The Anyscale job.

    Raises:
        ValueError: what is wrong with it.
    """
    job = Job.model_validate(yaml.safe_load(text))
    if not job.image_uri.endswith(f":{TAG}"):
        raise ValueError(f"{job.image_uri} is not of Ray {RAY_VERSION} and Python {PYTHON_VERSION}")
    check_study(job.entrypoint, "/mnt/shared_storage")


def test_anyscale() -> None:
    check_anyscale(text_of("anyscale.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_retries: 4", "max_retry: 4", "Extra inputs are not permitted"),
        ("market_type: PREFER_SPOT", "market_type: CHEAP", "Input should be"),
        ("CPU: 0", "CPU: 4", "Input should be 0"),
        ("anyscale:ray2.60.0-py311", "anyscale:ray2.60.0-py310", "is not of Ray"),
        ("shared_storage/prometar/out", "cluster_storage/out", "is lost with the cluster"),
    ],
)
def test_damage_of_the_anyscale_job_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_anyscale(damaged("anyscale.yaml", old, new))
