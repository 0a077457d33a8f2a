"""Imports go one way. Few files import an external library, and one uses private names of Ray and Optuna."""

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("prometar/**/*.py"), *ROOT.glob("tune/**/*.py")])

# A package imports only itself and earlier ones. "prometar", "prometar.data" and "tune" stand for their
# __init__.py only (see INITS).
PACKAGES = (
    "prometar.errors",
    "prometar.device",
    "prometar.environment",
    "prometar.metrics",
    "prometar.io",
    "prometar.embedded",
    "prometar.clip",
    "prometar.methods",
    "prometar.data",
    "prometar.data.datasets",
    "prometar.config",
    "prometar.data.splits",
    "prometar.data.streaming",
    "prometar.data.preparation",
    "prometar.step",
    "prometar.training",
    "prometar.inference",
    "prometar.analysis",
    "prometar.run_folder",
    "prometar.comparison",
    "prometar.cli",
    "prometar.__main__",
    "tune.space",
    "tune.config",
    "tune.records",
    "tune.store",
    "tune.execution",
    "tune.reproduce",
    "tune.stages",
    "tune.report",
    "tune.tracking",
    "tune.defaults",
    "tune.study",
    "tune",
    "prometar",
    "tune.tuned",
    "tune.search",
    "tune.commands",
)
INITS = {"prometar", "prometar.data", "tune"}

# By external library: the files and folders/ that may import it.
IMPORTERS: dict[str, set[str]] = {
    "open_clip": {"prometar/clip/openclip.py"},
    "transformers": set(),
    "huggingface_hub": {"prometar/inference/prompt_file.py"},
    "optuna": {"tune/space/", "tune/store/", "tune/report/plots.py"},
    "ray": {"prometar/data/streaming/raystream.py", "tune/execution/"},
    "pyarrow": {
        "prometar/io/stores.py",
        "prometar/data/datasets/prepared.py",
        "prometar/data/preparation/prepare.py",
        "prometar/data/streaming/raystream.py",
        "prometar/training/prediction_file.py",
    },
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


@cache
def imports_of(path: Path, *, at_start: bool = False) -> frozenset[str]:
    """Modules that a file imports. `at_start`: only at top level, not in functions or `if TYPE_CHECKING`."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body if at_start else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = str(node.module)
            # `from package import module` imports the module, `from module import name` imports `module`.
            submodules = {f"{module}.{alias.name}" for alias in node.names} & MODULES
            found |= submodules or {module}
    return frozenset(found)


def package_of(module: str) -> str:
    """Return the entry of PACKAGES that contains a module: the longest one, if there are several."""

    def contains(name: str) -> bool:
        if module == name:
            return True
        return name not in INITS and module.startswith(name + ".")

    names = [name for name in PACKAGES if contains(name)]
    assert names, f"Add the package of {module} to PACKAGES"
    return max(names, key=len)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    mine = PACKAGES.index(package_of(module_of(path)))
    ours = {name for name in imports_of(path) if name.split(".")[0] in {"prometar", "tune"}}
    forbidden = sorted(name for name in ours if PACKAGES.index(package_of(name)) > mine)
    assert not forbidden, f"{module_of(path)} must not import {forbidden}"


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    graph = {module_of(path): imports_of(path, at_start=True) & MODULES for path in FILES}
    TopologicalSorter(graph).prepare()  # raises a CycleError if there is a cycle


@pytest.mark.parametrize("library", IMPORTERS)
def test_few_files_import_an_external_library(library: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    others = {user for user in users if not user.startswith(tuple(IMPORTERS[library]))}
    assert not others, f"{sorted(others)} must not import {library}"


def test_every_package_has_a_docstring() -> None:
    inits = [path for path in FILES if path.name == "__init__.py"]
    silent = [path for path in inits if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent


def test_scripts_in_tune_do_not_shadow_other_modules() -> None:
    """`python tune/search.py` puts tune/ first on sys.path, until search.py removes this entry."""
    ours = {
        path.stem for path in ROOT.glob("tune/*") if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    installed = {*packages_distributions(), *sys.stdlib_module_names}
    shadowed = (ours & installed) - {"__init__", "tune"}
    assert not shadowed


def _private_uses(source: str) -> set[str]:
    """Return private attributes of any object but self, cls and super(), and private imports.

    Private imports are `from` imports of a private module or name of Ray or Optuna.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in {"self", "cls", "super()"}:
                found.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            words = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            if words[0] in {"ray", "optuna"} and any(word.startswith("_") for word in words):
                found.add(".".join(words))
    return found


def test_one_file_uses_private_names() -> None:
    users = [path for path in FILES if {name.split(".")[0] for name in imports_of(path)} & {"ray", "optuna"}]
    found = {str(path.relative_to(ROOT)): _private_uses(path.read_text("utf-8")) for path in users}
    assert {file for file, uses in found.items() if uses} == {"tune/execution/patching.py"}
