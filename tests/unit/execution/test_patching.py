"""Private names of Ray Tune: another version may lack them, or use them in another way."""

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
    before = dict(class_cache.DEFAULT_ENV_VARS)
    handle = RayActorManager._actor_task_failed
    with patch_tune():
        made: Any = class_cache._ActorClassCache().get(FakeTrial)
        assert not made._default_options["runtime_env"].get("env_vars"), f"ray {ray.__version__}"
        assert RayActorManager._actor_task_failed is not handle
    assert before == class_cache.DEFAULT_ENV_VARS
    assert RayActorManager._actor_task_failed is handle
