"""The files of clusters/, what they must agree on, and a damaged copy of one."""

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
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # typer does not name it itself
IMAGE = f"registry.example.com/prometar:{TAG}"


def text_of(name: str) -> str:
    """A file of clusters/."""
    return (CLUSTERS / name).read_text("utf-8")


def damaged(name: str, old: str, new: str) -> str:
    """A file of clusters/ with its first `old` replaced."""
    text = text_of(name)
    assert old in text, f"{name} has no {old!r} to damage"
    return text.replace(old, new, 1)


def script(name: str) -> ModuleType:
    """A script of clusters/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"clusters_{name}", CLUSTERS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ray_requirement() -> Requirement:
    """What pyproject.toml asks of Ray on a cluster, with the extras of studies and clusters."""
    extras = PYPROJECT["optional-dependencies"]
    study, cluster = (
        next(r for r in map(Requirement, extras[e]) if r.name == "ray") for e in ("study", "cluster")
    )
    study.extras |= cluster.extras
    return study


def study_options(command: str) -> dict[str, Any]:
    """What search.py makes of a command that may begin with wait.py; nothing is run.

    Raises:
        ValueError: an option that search.py does not take.
    """
    words = shlex.split(command)
    if words[1].endswith("clusters/wait.py"):
        words = script("wait").parse(words[2:]).command
    assert words[0] == "python"
    assert words[1].endswith("tune/search.py")
    assert (ROOT / words[1].removeprefix("/home/ray/prometar/")).is_file()
    try:
        options = typer.main.get_command(app).make_context("search.py", words[2:]).params
        StudyConfig.of(**{name: value for name, value in options.items() if value and name != "plan"})
    except (USAGE_ERROR, PrometarError) as error:
        raise ValueError(f"search.py: {error}") from None
    return options


def check_study(command: str, shared: str) -> None:
    """A study that joins the running cluster, and whose data and state lie below `shared`.

    Raises:
        ValueError: it does not.
    """
    options = study_options(command)
    if options["address"] is None:
        raise ValueError("the study would start a Ray of its own: --address is missing")
    for name in ("out", "data_root"):
        if not str(options[name]).startswith(f"{shared}/"):
            raise ValueError(f"--{name.replace('_', '-')} {options[name]} is lost with the cluster")
    if re.search(r"//[^/]*:[^/]*@", options["storage"] or ""):
        raise ValueError("--storage shows a password")
