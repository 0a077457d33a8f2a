"""Private names of Ray and Optuna: they exist, and one file uses them."""

import ast

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.execution import class_cache

from tests.unit.test_layers import FILES, ROOT, imports_of

USER = "tune/execution/patching.py"


def test_private_names_exist() -> None:
    assert callable(RayActorManager._actor_task_failed)
    assert isinstance(class_cache.DEFAULT_ENV_VARS, dict)


def _private_uses(source: str) -> set[str]:
    """Private modules that are imported, and private names of anything but `self`, `cls` and `super()`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in {"self", "cls", "super()"}:
                found.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            words = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            if words[0] in {"ray", "optuna"} and any(word.startswith("_") for word in words):
                found.add(str(node.module))
    return found


def test_one_file_uses_private_names() -> None:
    users = [path for path in FILES if {name.split(".")[0] for name in imports_of(path)} & {"ray", "optuna"}]
    found = {str(path.relative_to(ROOT)): _private_uses(path.read_text("utf-8")) for path in users}
    assert {file for file, uses in found.items() if uses} == {USER}
