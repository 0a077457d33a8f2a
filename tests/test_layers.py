"""Imports go one way, and each outside system enters through few named files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("prometar/**/*.py"), *ROOT.glob("tune/**/*.py")])

# From the bottom up: a module imports from its own row and the rows before it.
LAYERS = (
    ("prometar.errors",),
    ("prometar.stores",),
    ("prometar.yamltext",),
    ("prometar.recipes",),
    ("prometar.files",),
    (
        "prometar.config", "prometar.console", "prometar.embedded", "prometar.environment",
        "prometar.intervals", "prometar.lock",
    ),
    ("prometar.data",),
    ("prometar.backbone",),
    ("prometar.parts",),
    ("prometar.methods", "prometar.model", "prometar.optim", "prometar.state", "prometar.objective"),
    ("prometar.batch", "prometar.differentiate", "prometar.graph", "prometar.scaling"),
    (
        "prometar.step",
        "prometar.evaluate",
        "prometar.checkpoint",
        "prometar.published",
        "prometar.raylocal",
        "prometar.placement",
        "prometar.promptfile",
    ),
    ("prometar.vectorised",),
    ("prometar.train",),
    ("prometar.lockstep",),
    ("prometar", "prometar.classifier", "prometar.analysis"),
    ("prometar.runs",),
    ("prometar.reproduce",),
    (
        "tune", "tune.job", "tune.spaces", "tune.tally", "tune.tracker_kinds", "tune.watchdog",
        "tune.stopping", "tune.storage",
    ),
    ("tune.points",),
    ("tune.sampler",),
    ("tune.memory", "tune.mirror"),
    ("tune.jobfiles",),
    ("tune.legs",),
    ("tune.crew",),
    ("tune.trial",),
    ("tune.searcher", "tune.request", "tune.runner"),
    ("tune.folder", "tune.reruns", "tune.wording", "tune.plots", "tune.importance"),
    ("tune.records", "tune.finals", "tune.lastround", "tune.probe", "tune.progress", "tune.trackers"),
    ("tune.findings", "tune.report", "tune.compare", "tune.summary", "tune.starts"),
    ("tune.check", "tune.study"),
    ("prometar.commands",),
    ("tune.search", "prometar.cli"),
    ("prometar.__main__",),
)  # fmt: skip
ENTRANCES = {
    "open_clip": {"prometar/backbone/openclip.py", "prometar/embedded/pretrain.py"},
    "optuna": {
        "tune/memory.py", "tune/sampler.py", "tune/tally.py", "tune/folder.py", "tune/importance.py",
        "tune/progress.py", "tune/storage.py", "tune/trackers.py", "tune/lastround.py",
    },
    "ray": {
        "prometar/data/raystream.py", "prometar/data/resident.py", "prometar/raylocal.py",
        "prometar/reproduce/execute.py", "tune/trial.py",
        "tune/searcher.py", "tune/runner.py", "tune/progress.py", "tune/folder.py",
        "tune/reruns.py", "tune/probe.py", "tune/study.py", "tune/trackers.py",
    },
    "pyarrow": {
        "prometar/stores.py", "tune/mirror.py", "prometar/data/sources.py", "prometar/data/prepare.py",
        "prometar/data/resident.py",
    },
}  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(str(node.module))
    return found


def layer_of(module: str) -> int:
    matches = [
        (len(name), row)
        for row, names in enumerate(LAYERS)
        for name in names
        if module == name or (module.startswith(name + ".") and name not in {"prometar", "tune"})
    ]
    assert matches, f"{module} is in no layer: add it to LAYERS"
    return max(matches)[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    mine = layer_of(module_of(path))
    ours = {name for name in imports_of(path) if name.split(".")[0] in {"prometar", "tune"}}
    above = sorted(name for name in ours if layer_of(name) > mine)
    assert not above, f"{module_of(path)} imports from above: {above}"


@pytest.mark.parametrize("system", ENTRANCES)
def test_outside_systems_enter_through_named_files(system: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name.split(".")[0] == system for name in imports_of(path))
    }
    assert users <= ENTRANCES[system], f"{system} enters through {sorted(users - ENTRANCES[system])} too"


def test_no_file_in_tune_hides_a_module_from_search() -> None:
    """`python tune/search.py` puts tune/ first on sys.path."""
    import sys

    names = {path.stem for path in ROOT.glob("tune/*.py")} - {"__init__"}
    dependencies = {"ray", "optuna", "torch", "numpy", "pyarrow", "yaml", "rich", "typer", "plotly", "jinja2"}
    assert not names & (set(sys.stdlib_module_names) | dependencies)
