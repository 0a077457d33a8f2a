"""Patches to Ray Tune that touch its private names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache


@contextmanager
def patched() -> Iterator[None]:
    """Patch Tune in this context.

    Ray raises OutOfMemoryError, not RayActorError, if its memory monitor kills a worker. Tune 2.60 does not
    handle this error, and would end the whole experiment.

    Tune sets PL_DISABLE_FORK, which only Lightning reads, in each worker's runtime_env. With a variable in
    runtime_env, Ray starts Python twice per worker, which takes one second per worker and stage.
    """
    original = RayActorManager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            reason = MemoryError(str(exception).splitlines()[0])
            death: Any = RayActorError(error_msg=str(reason))
            death.cause = reason  # where Ray also stores the exception when a worker's own code fails
            exception = death
        original(self, tracked_actor_task, exception)

    with (
        mock.patch.object(RayActorManager, "_actor_task_failed", failed),
        mock.patch.object(class_cache, "DEFAULT_ENV_VARS", {}),
    ):
        yield
