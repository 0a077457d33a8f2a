"""The files of clusters/, damaged copies of them, and checks of the commands in them."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from packaging.requirements import Requirement

from prometar.errors import PrometarError
from tune.config import StudyConfig
from tune.search import app

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RAY_VERSION = "2.60.0"
PYTHON_VERSION = "3.11"
TAG = f"ray{RAY_VERSION}-py{PYTHON_VERSION.replace('.', '')}"
SMALL_STUDY = [
    "--dataset",
    "cells",
    "--epochs",
    "1",
    "--set",
    "data.shots=1",
    "--set",
    "search.val_per_class=2",
    "--pruner",
    "none",
    "--top",
    "0",
    "--final-seeds",
    "",
]
"""Options of a study that takes seconds: short trials, no reruns and no final test."""
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""Error of typer for an unusable command line. typer does not export it."""
IMAGE = f"registry.example.com/prometar:{TAG}"


def text_of(name: str) -> str:
    """Return the content of a file of clusters/."""
    return (CLUSTERS / name).read_text("utf-8")


def damaged(name: str, old: str, new: str) -> str:
    """Return the content of a file of clusters/ with its first `old` replaced by `new`."""
    text = text_of(name)
    assert old in text, f"{name} has no {old!r} to damage"
    return text.replace(old, new, 1)


def script(name: str) -> ModuleType:
    """Import a script of clusters/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"clusters_{name}", CLUSTERS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ray_requirement() -> Requirement:
    """Return the requirement of Ray on a cluster: that of pyproject.toml, with the extras of both groups."""
    requirement = _ray_of("study")
    requirement.extras |= _ray_of("cluster").extras
    return requirement


def _ray_of(group: str) -> Requirement:
    """Return the requirement of Ray in a group of optional dependencies."""
    requirements = [Requirement(text) for text in PYPROJECT["optional-dependencies"][group]]
    return next(requirement for requirement in requirements if requirement.name == "ray")


def study_options(command: str) -> dict[str, Any]:
    """Parse a command of search.py, which may begin with wait.py. Return its options. Nothing is run.

    Raises:
        ValueError: search.py refuses an option.
    """
    words = shlex.split(command)
    if words[1].endswith("clusters/wait.py"):
        words = script("wait").parse(words[2:]).command
    assert words[0] == "python"
    assert words[1].endswith("tune/search.py")
    assert (ROOT / words[1].removeprefix("/home/ray/prometar/")).is_file()
    try:
        options = typer.main.get_command(app).make_context("search.py", words[2:]).params
        given = {name: value for name, value in options.items() if value and name != "plan"}
        StudyConfig.of(**given)
    except (USAGE_ERROR, PrometarError) as error:
        raise ValueError(f"search.py: {error}") from None
    return options


def check_study(command: str, shared: str) -> None:
    """Check that a command starts a study as a cluster requires.

    It must join the running cluster, keep its data and results below `shared`, and show no password.

    Args:
        command: Command of search.py, which may begin with wait.py.
        shared: Folder that outlives the cluster.

    Raises:
        ValueError: The command does not meet a requirement.
    """
    options = study_options(command)
    if options["address"] is None:
        raise ValueError("the study would start a Ray of its own: --address is missing")
    for name in ("out", "data_root"):
        if not str(options[name]).startswith(f"{shared}/"):
            raise ValueError(f"--{name.replace('_', '-')} {options[name]} is lost with the cluster")
    storage = options["storage"] or ""
    if re.search(r"//[^/]*:[^/]*@", storage):
        raise ValueError("--storage shows a password")
