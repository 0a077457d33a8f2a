"""Patches of Ray Tune's private names, which another version may lack or use in another way."""

from typing import Any

import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.execution import class_cache

from tests.support.fake_trial import FakeTrial
from tune.execution.patching import patch_tune


def test_workers_need_no_environment_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in class_cache.ENV_VARS_TO_PROPAGATE:
        monkeypatch.delenv(name, raising=False)

    with patch_tune():
        actor_class: Any = class_cache._ActorClassCache().get(FakeTrial)

    runtime_env = actor_class._default_options["runtime_env"]
    assert not runtime_env.get("env_vars"), f"ray {ray.__version__}"


def test_the_patches_end_with_their_context() -> None:
    variables_before = dict(class_cache.DEFAULT_ENV_VARS)
    handler_before = RayActorManager._actor_task_failed

    with patch_tune():
        assert variables_before != class_cache.DEFAULT_ENV_VARS
        assert RayActorManager._actor_task_failed is not handler_before

    assert variables_before == class_cache.DEFAULT_ENV_VARS
    assert RayActorManager._actor_task_failed is handler_before
