"""Private names of Ray, Optuna and open_clip that are used: they are there, and in a file for each use."""

import ast
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from typing import Any

import pytest
from optuna.storages import RDBStorage, get_storage
from optuna.trial import create_trial
from ray.tune.execution import class_cache
from ray.tune.utils.object_cache import _ObjectCache
from tune.execution.ray_private import idle_workers_stay, workers_are_like_any_other
from tune.optimizer.optuna_private import id_of, let_go

from tests.support.fake_trial import FakeTrial
from tests.unit.test_layers import FILES, ROOT, imports_of

RAY = "tune/execution/ray_private.py"
OPTUNA = "tune/optimizer/optuna_private.py"
NAMES = [
    (RAY, "ray.air._internal.usage", "tag_callbacks"),
    (RAY, "ray.air.execution._internal.actor_manager", "RayActorManager._actor_task_failed"),
    (RAY, "ray.tune.utils.object_cache", "_ObjectCache.cache_object"),
    (RAY, "ray.tune.utils.object_cache", "_ObjectCache.flush_cached_objects"),
    (OPTUNA, "optuna.samplers", "TPESampler._sample"),
    (OPTUNA, "optuna.study", "Study._get_trials"),
    (OPTUNA, "optuna.storages._rdb.models", "StudyUserAttributeModel"),
    (OPTUNA, "optuna.storages._rdb.storage", "_create_scoped_session"),
]


@pytest.mark.parametrize(("file", "module", "name"), NAMES)
def test_a_private_name_is_there(file: str, module: str, name: str) -> None:
    try:
        assert callable(attrgetter(name)(import_module(module)))
    except (ImportError, AttributeError) as error:
        library = module.partition(".")[0].replace("open_clip", "open_clip_torch")
        pytest.fail(f"{library} {version(library)} has no {module}.{name}, on which {file} rests: {error}")


def test_a_trial_s_worker_needs_no_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in class_cache.ENV_VARS_TO_PROPAGATE:
        monkeypatch.delenv(name, raising=False)
    before = dict(class_cache.DEFAULT_ENV_VARS)
    with workers_are_like_any_other():
        made: Any = class_cache._ActorClassCache().get(FakeTrial)
        assert not made._default_options["runtime_env"].get("env_vars"), f"ray {version('ray')}: {RAY}"
    assert before == class_cache.DEFAULT_ENV_VARS


def test_idle_workers_stay_until_a_trial_waits_for_another_place() -> None:
    cache = _ObjectCache(may_keep_one=True)
    with idle_workers_stay():
        assert all(cache.cache_object("small", worker) for worker in "abc")
        assert list(cache.flush_cached_objects()) == []
        cache.increase_max("small")
        assert cache.pop_cached_object("small") == "a"
        assert list(cache.flush_cached_objects()) == [], "others follow at once"
        cache.increase_max("large")
        assert not cache.cache_object("small", "d"), "another place is waited for"
        cache.decrease_max("small")
        assert list(cache.flush_cached_objects()) == ["b", "c"], "they make room for it"
        cache.decrease_max("large")
        assert cache.cache_object("small", "d")
        assert list(cache.flush_cached_objects(force_all=True)) == ["d"]
    assert [cache.cache_object("small", worker) for worker in "ab"] == [True, False], "as Tune has it"


def test_what_optuna_s_objects_keep_to_themselves() -> None:
    said = f"optuna {version('optuna')}: {OPTUNA}"
    assert id_of(create_trial(value=1.0)) == -1, said
    storage = get_storage("sqlite:///:memory:")
    inner = getattr(storage, "_backend", None)
    assert isinstance(inner, RDBStorage), said
    before = inner.engine.pool
    let_go(storage)
    assert inner.engine.pool is not before, said


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


def test_private_names_are_used_in_a_file_for_each_use() -> None:
    users = [path for path in FILES if {name.split(".")[0] for name in imports_of(path)} & {"ray", "optuna"}]
    found = {str(path.relative_to(ROOT)): _private_uses(path.read_text("utf-8")) for path in users}
    assert {file for file, uses in found.items() if uses} == {RAY, OPTUNA}
