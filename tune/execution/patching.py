"""Patches for internals of Ray Tune."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache


@contextmanager
def patch_tune() -> Iterator[None]:
    """Patch Tune in this context, so that jobs can be retried if memory runs out, and workers start faster.

    If Ray's memory monitor kills a worker, Ray raises OutOfMemoryError, which Tune 2.60 does not handle. The
    whole experiment would end. The patch replaces the error by a RayActorError, which Tune handles.

    Tune sets PL_DISABLE_FORK for Lightning in each worker's runtime_env. If a runtime_env sets variables, Ray
    starts Python twice per worker, which takes one second more. The patch removes the variable.
    """
    original = RayActorManager._actor_task_failed

    def task_failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            memory_error = MemoryError(str(exception).splitlines()[0])
            actor_error: Any = RayActorError(error_msg=str(memory_error))
            actor_error.cause = memory_error  # where Ray stores exceptions of a worker's own code
            exception = actor_error
        original(self, tracked_actor_task, exception)

    with (
        mock.patch.object(RayActorManager, "_actor_task_failed", task_failed),
        mock.patch.object(class_cache, "DEFAULT_ENV_VARS", {}),
    ):
        yield
